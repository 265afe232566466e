"""API keys: what one is, where it is kept, who holds which."""
