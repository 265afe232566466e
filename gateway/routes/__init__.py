"""One endpoint family per file; each exposes `setup(app)` and stays thin."""
