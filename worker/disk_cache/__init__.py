"""Prefixes on disk: names, files, room, the thread that reads and writes. No MLX."""
