"""What following one grammar may take: processor time over all of its tokens, and memory."""

import mmap
import subprocess
import sys
import time
from unittest.mock import Mock

import pytest

from worker.grammar.compiling import child
from worker.grammar.compiling.child import GRACE_PER_TOKEN_S, GRACE_S, MaskSteps
from worker.grammar.compiling.wire import Follow, Status

MASK_WORK_S = GRACE_S / 2.5


def slow_matcher() -> Mock:
    """A matcher whose every mask takes long, but less than one mask may."""

    def compute(*_: int) -> None:
        end = time.process_time() + MASK_WORK_S
        while time.process_time() < end:
            pass

    matcher = Mock(unsafe_compute_mask_ptr=compute)
    matcher.is_error.return_value = matcher.is_stopped.return_value = False
    matcher.deep_copy.return_value = matcher
    return matcher


def test_grammar_is_slow_when_its_masks_take_too_long_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is within its bound; the third one is too much, unless many tokens came with it."""
    monkeypatch.setattr(child, "_bound_time", lambda _: None)
    many = [1] * int(2 * MASK_WORK_S / GRACE_PER_TOKEN_S)
    for tokens, last in (([1], Status.SLOW), (many, Status.OPEN)):
        steps = MaskSteps(slow_matcher(), Mock(vocab_size=32), mmap.mmap(-1, 64))
        assert steps.follow_row(Follow(0, [], begins=True)) is Status.OPEN
        assert steps.follow_row(Follow(0, [1])) is Status.OPEN
        assert steps.follow_row(Follow(0, tokens)) is last


@pytest.mark.skipif(sys.platform != "linux", reason="the system bounds no memory")
def test_process_gets_no_more_memory_when_its_bound_is_reached() -> None:
    """Half of what following a grammar may add is there, and twice as much is not."""
    script = (
        "from worker.grammar.compiling.child import FOLLOW_BYTES, _bound_memory\n"
        "_bound_memory(FOLLOW_BYTES)\n"
        "half = bytearray(FOLLOW_BYTES // 2)\n"
        "print('half')\n"
        "bytearray(FOLLOW_BYTES * 2)\n"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert ended.stdout == "half\n"
    assert "MemoryError" in ended.stderr
