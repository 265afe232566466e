"""Counts of embedding, and their rates over the last minute."""

from gateway.dispatch.stats import Throughput


def test_rates_are_those_of_the_last_minute() -> None:
    """What is older counts in the totals alone."""
    counted = Throughput()
    counted.count_request(10.1, inputs=60, tokens=600)
    counted.count_request(10.9, inputs=60, tokens=600)
    counted.count_request(40.0, inputs=120, tokens=0)
    now = counted.read_rates(50.0)
    assert (now.inputs, now.tokens, now.inputs_per_s, now.tokens_per_s) == (240, 1200, 4.0, 20.0)
    later = counted.read_rates(80.0)
    assert (later.inputs, later.inputs_per_s, later.tokens_per_s) == (240, 2.0, 0.0)
    assert counted.read_rates(500.0).inputs_per_s == 0


def test_memory_is_bounded() -> None:
    """A bucket per second, and no more of them than the window has seconds."""
    counted = Throughput()
    for second in range(1000):
        counted.count_request(second, inputs=1, tokens=2)
    assert counted.read_rates(999).inputs_per_s == 1.0
    assert counted.inputs == 1000
