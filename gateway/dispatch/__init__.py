"""Jobs on their way between HTTP handlers and workers: queues, routing, streams, liveness.

Everything here is pure logic with an injected clock, except `link.py` (the socket) and `pool.py` (the wiring).
"""
