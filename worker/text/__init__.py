"""Tokens to channel-tagged text: markers, stops, reasoning, tool calls. Pure: imports neither MLX nor ZeroMQ."""
