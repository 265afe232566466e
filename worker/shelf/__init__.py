"""Prefixes on disk: files, names, room, and the thread that reads and writes them. No MLX."""
