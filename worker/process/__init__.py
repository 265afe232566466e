"""One life of an engine process: its start, its loop, its link, its preprocessing. No MLX."""
