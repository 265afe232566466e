"""Several deltas of one choice as one; pure. Order within a choice is kept, order between choices is not."""

from protocol.messages import Delta
from protocol.parts import joined_calls


def merge(deltas: list[Delta], *, choices: int) -> list[Delta]:
    """Coalesce to at most one delta per choice, in the order in which choices first appear.

    Deltas of a choice that the job does not have (a faulty worker) are left out.
    """
    if len(deltas) == 1 and deltas[0].choice == 0:
        return deltas
    by_choice: dict[int, list[Delta]] = {}
    for delta in deltas:
        by_choice.setdefault(delta.choice, []).append(delta)
    return [_join(parts) for choice, parts in by_choice.items() if 0 <= choice < choices]


def weight(delta: Delta) -> int:
    """Roughly how many characters of memory an unread delta holds on to."""
    size = len(delta.text) + len(delta.reasoning) + 8 * len(delta.tokens)
    if delta.logprobs:
        size += sum(64 * (1 + len(entry.top)) for entry in delta.logprobs)
    if delta.calls:
        size += sum(len(call.arguments) + len(call.name) for call in delta.calls)
    return size


def _join(parts: list[Delta]) -> Delta:
    last = parts[-1]
    if len(parts) == 1:
        return last
    return Delta(
        job=last.job,
        attempt=last.attempt,
        choice=last.choice,
        tokens=[token for part in parts for token in part.tokens],
        text="".join([part.text for part in parts]),
        reasoning="".join([part.reasoning for part in parts]),
        calls=joined_calls(call for part in parts for call in part.calls),
        logprobs=[entry for part in parts for entry in part.logprobs],
        finish=next((part.finish for part in reversed(parts) if part.finish is not None), None),
    )
