"""Plain completions with the OpenAI client, whole and streamed. Usage: completions.py [URL]."""

import os
import sys

from openai import OpenAI

url = sys.argv[1] if len(sys.argv) > 1 else os.environ.get("POOL_URL", "http://127.0.0.1:8000")
client = OpenAI(base_url=f"{url}/v1", api_key="not-needed")
model = next(model.id for model in client.models.list() if (model.model_extra or {})["kind"] == "chat")

whole = client.completions.create(model=model, prompt=["Once upon a time", "It was a dark"], max_tokens=24)
for choice in whole.choices:
    print(f"{choice.index}: {choice.text!r} ({choice.finish_reason})")

stream = client.completions.create(model=model, prompt="Once upon a time", max_tokens=24, stream=True)
for chunk in stream:
    print(chunk.choices[0].text, end="", flush=True)
print()
