#!/bin/sh
# Health, models, chat and streaming with nothing but curl. Usage: curl.sh [URL]
set -eu
url=${1:-${POOL_URL:-http://127.0.0.1:8000}}

echo "# health"
curl -sS --fail "$url/health"
echo
echo "# models"
curl -sS --fail "$url/v1/models"
echo
echo "# chat"
curl -sS --fail "$url/v1/chat/completions" \
  -H "Content-Type: application/json" \
  -d '{"messages": [{"role": "user", "content": "What is the capital of France?"}], "max_tokens": 32}'
echo
echo "# chat, streamed"
curl -sS --fail --no-buffer "$url/v1/chat/completions" \
  -H "Content-Type: application/json" \
  -H "X-Request-ID: from-curl" \
  -d '{"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 16, "stream": true}'
