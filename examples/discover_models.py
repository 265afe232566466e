"""Build a registry of the models that a pool serves. Usage: discover_models.py [URL]."""

import json
import os
import sys
import urllib.parse
import urllib.request

url = sys.argv[1] if len(sys.argv) > 1 else os.environ.get("POOL_URL", "http://127.0.0.1:8000")

with urllib.request.urlopen(f"{url}/v1/models") as response:
    models = json.load(response)["data"]

registry = {
    model["id"]: {key: model[key] for key in ("family", "context_length", "description", "tier", "state")}
    for model in models
    if "chat" in model["tags"]
}
print(json.dumps(registry, indent=2))

# One model by its name; a "/" in it may be sent as it is or percent-encoded.
for name in registry:
    with urllib.request.urlopen(f"{url}/v1/models/{urllib.parse.quote(name, safe='')}") as response:
        print(f"{name}: {json.load(response)['replicas']} worker(s)")
