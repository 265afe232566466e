"""Answers held to a grammar: what a job asks for, what a row may say next. No MLX; llguidance only in `child`."""
