"""A chat completion with the OpenAI client. Usage: chat.py [URL]."""

import os
import sys

from openai import OpenAI

url = sys.argv[1] if len(sys.argv) > 1 else os.environ.get("POOL_URL", "http://127.0.0.1:8000")
client = OpenAI(base_url=f"{url}/v1", api_key="not-needed")

model = next(model.id for model in client.models.list() if (model.model_extra or {})["kind"] == "chat")
answer = client.chat.completions.create(
    model=model,
    messages=[
        {"role": "system", "content": "You are a helpful assistant."},
        {"role": "user", "content": "What is the capital of France?"},
    ],
    temperature=0.7,
    max_tokens=64,
)
print(answer.choices[0].message.content)
if answer.usage:
    print(f"[{model}: {answer.usage.prompt_tokens} tokens in, {answer.usage.completion_tokens} out]")
