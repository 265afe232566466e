"""Which of these sentences say nearly the same? Usage: similarity.py [URL]."""

import json
import os
import sys
from urllib.request import Request, urlopen

url = sys.argv[1] if len(sys.argv) > 1 else os.environ.get("POOL_URL", "http://127.0.0.1:8000")

sentences = [
    "The train to Lyon leaves at nine.",
    "Our cat is afraid of thunder.",
    "At nine o'clock there is a train to Lyon.",
    "Thunderstorms frighten the cat.",
]
body = {"left": sentences, "metric": "cosine", "top_k": 2}
request = Request(f"{url}/similarity", json.dumps(body).encode(), {"Content-Type": "application/json"})
with urlopen(request) as response:
    answer = json.load(response)
for pair in answer["pairs"]:
    print(f"{pair['score']:.2f} {sentences[pair['left']]} = {sentences[pair['right']]}")

with urlopen(f"{url}/info") as response:
    info = json.load(response)
print(f"[{info['model']}: {info['embedding_dim']} dimensions, {info['throughput']['inputs']} texts so far]")
