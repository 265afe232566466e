"""The vision engine: the chat engine's batch, on mlx-vlm."""
