"""The chat engine, on mlx-lm."""
