"""What can go wrong, as the OpenAI client shows it. Usage: handle_errors.py [URL]."""

import os
import sys

import openai
from openai import OpenAI

url = sys.argv[1] if len(sys.argv) > 1 else os.environ.get("POOL_URL", "http://127.0.0.1:8000")
# Full queues and restarting models are tried again by the client itself, when the server says so.
client = OpenAI(base_url=f"{url}/v1", api_key="not-needed", max_retries=3)
model = next(model.id for model in client.models.list() if (model.model_extra or {})["kind"] == "chat")


def ask(**fields: object) -> None:
    """Send a request and say what became of it."""
    asked: dict[str, object] = {"model": model, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 8}
    try:
        answer = client.chat.completions.create(**{**asked, **fields})  # type: ignore[call-overload]
        print(f"answered: {answer.choices[0].message.content!r}")
    except openai.NotFoundError as error:
        print(f"no such model ({error.code}): {error.message}")
    except openai.BadRequestError as error:
        print(f"my mistake in {error.param} ({error.code}): {error.message}")
    except openai.RateLimitError as error:
        print(f"too busy, also after three more attempts ({error.code})")
    except openai.APIStatusError as error:
        print(f"the server failed ({error.code}); tell its operator the request id {error.request_id}")
    except openai.APIConnectionError:
        print(f"nobody answers at {url}")


ask()
ask(model="no-such-model")
ask(temperature=99)
ask(messages=[{"role": "user", "content": "Hello " * 20_000}])
