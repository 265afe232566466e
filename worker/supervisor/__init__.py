"""The life of an engine process and of its spare. No MLX."""
