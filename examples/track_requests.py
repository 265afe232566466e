"""Follow a request from the client into the server's log. Usage: track_requests.py [URL]."""

import json
import os
import sys
import urllib.request
import uuid

url = sys.argv[1] if len(sys.argv) > 1 else os.environ.get("POOL_URL", "http://127.0.0.1:8000")

request_id = f"example-{uuid.uuid4()}"
request = urllib.request.Request(
    f"{url}/v1/chat/completions",
    data=json.dumps({"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 16}).encode(),
    headers={"Content-Type": "application/json", "X-Request-ID": request_id},
)
with urllib.request.urlopen(request) as response:
    answer = json.load(response)
    returned, seconds = response.headers["X-Request-ID"], response.headers["X-Process-Time"]
print("the id was kept" if returned == request_id else "the id was not one that may be kept")
print(f"request {returned} took {seconds} s: {answer['choices'][0]['message']['content']!r}")
print(f"look for [request_id={returned}] in the gateway's log")
