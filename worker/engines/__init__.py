"""The engines: what a worker process can run. `base.py` is the seam; each other file is one engine."""
