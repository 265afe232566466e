"""What runs, what waits and how fast it goes. Usage: queue_stats.py [URL]."""

import json
import os
import sys
import urllib.request

url = sys.argv[1] if len(sys.argv) > 1 else os.environ.get("POOL_URL", "http://127.0.0.1:8000")

with urllib.request.urlopen(f"{url}/v1/queue/stats") as response:
    stats = json.load(response)
queue, metrics = stats["queue_stats"], stats["metrics"]
print(f"running {queue['active_requests']} of {queue['max_concurrency']}")
print(f"waiting {queue['queue_size']} of {queue['max_queue_size']}")
print(f"served  {metrics['total_requests']} requests, {metrics['error_count']} of them failed")
print(f"speed   {metrics['performance']['avg_tps']} tokens/s per request")
