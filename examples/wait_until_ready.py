"""Wait until every model is loaded and warm. Usage: wait_until_ready.py [URL] [SECONDS]. Exit code 1: not in time."""

import json
import os
import sys
import time
import urllib.error
import urllib.request

url = sys.argv[1] if len(sys.argv) > 1 else os.environ.get("POOL_URL", "http://127.0.0.1:8000")
patience_s = float(sys.argv[2]) if len(sys.argv) > 2 else 60.0

deadline = time.monotonic() + patience_s
while time.monotonic() < deadline:
    try:
        # 200 when every model is up; 503, with the same body, while one is not.
        with urllib.request.urlopen(f"{url}/health", timeout=5) as response:
            health = json.load(response)
    except (urllib.error.URLError, ConnectionError):
        time.sleep(0.5)
        continue
    if not health["warmup_enabled"] or health["warmup_completed"]:
        print(f"ready: {', '.join(model['id'] for model in health['models'])}")
        sys.exit(0)
    time.sleep(0.5)
print(f"not ready after {patience_s:g} s", file=sys.stderr)
sys.exit(1)
