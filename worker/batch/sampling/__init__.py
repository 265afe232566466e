"""Choosing the next token of every row: parameters as vectors, random numbers, log-probabilities of prompts."""
