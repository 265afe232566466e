"""What the gateway tells of itself: logs, events, traces, the lag of its event loop."""
