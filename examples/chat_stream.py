"""A streamed chat completion with the OpenAI client. Usage: chat_stream.py [URL]."""

import os
import sys

from openai import OpenAI

url = sys.argv[1] if len(sys.argv) > 1 else os.environ.get("POOL_URL", "http://127.0.0.1:8000")
client = OpenAI(base_url=f"{url}/v1", api_key="not-needed")

stream = client.chat.completions.create(
    model=next(model.id for model in client.models.list() if (model.model_extra or {})["kind"] == "chat"),
    messages=[{"role": "user", "content": "Tell me a short story."}],
    max_tokens=96,
    stream=True,
    stream_options={"include_usage": True},
)
for chunk in stream:
    for choice in chunk.choices:
        print(choice.delta.content or "", end="", flush=True)
    if chunk.usage:
        print(f"\n[{chunk.usage.completion_tokens} tokens]")
