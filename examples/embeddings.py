"""Find the text that answers a question, by the distance of their vectors. Usage: embeddings.py [URL]."""

import os
import sys

from openai import OpenAI

url = sys.argv[1] if len(sys.argv) > 1 else os.environ.get("POOL_URL", "http://127.0.0.1:8000")
client = OpenAI(base_url=f"{url}/v1", api_key="not-needed")

texts = [
    "The cat sleeps on the warm windowsill.",
    "Interest rates rose by half a percent.",
    "Knead the dough and let it rest for an hour.",
]
question = "How do I bake bread?"

answer = client.embeddings.create(model="text-embedding-3-small", input=[question, *texts])
asked, *found = (entry.embedding for entry in answer.data)
# Vectors have length 1, so the cosine is the dot product.
scores = [sum(a * b for a, b in zip(asked, vector, strict=True)) for vector in found]
for score, text in sorted(zip(scores, texts, strict=True), reverse=True):
    print(f"{score:.2f} {text}")
print(f"[{answer.model}: {len(asked)} dimensions, {answer.usage.total_tokens} tokens]")
