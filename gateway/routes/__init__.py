"""One family of endpoints per file; each exposes `setup(app)` and stays thin."""
