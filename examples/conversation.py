"""Several turns of a conversation; what is known already is found in the prefix cache. Usage: conversation.py [URL]."""

import os
import sys

from openai import OpenAI
from openai.types.chat import ChatCompletionMessageParam

url = sys.argv[1] if len(sys.argv) > 1 else os.environ.get("POOL_URL", "http://127.0.0.1:8000")
client = OpenAI(base_url=f"{url}/v1", api_key="not-needed")
model = next(model.id for model in client.models.list() if (model.model_extra or {})["kind"] == "chat")

messages: list[ChatCompletionMessageParam] = [{"role": "system", "content": "You are a guide to the city. " * 8}]
for question in ("What is there to see?", "And where do I eat?", "How do I get home?"):
    messages.append({"role": "user", "content": question})
    answer = client.chat.completions.create(model=model, messages=messages, max_tokens=32)
    text = answer.choices[0].message.content or ""
    messages.append({"role": "assistant", "content": text})
    usage = answer.usage
    cached = usage.prompt_tokens_details.cached_tokens if usage and usage.prompt_tokens_details else 0
    print(f"> {question}\n{text}\n[{usage.prompt_tokens if usage else 0} tokens in, {cached} of them cached]\n")
