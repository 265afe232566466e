"""Tokenizers of the size that people's models have, and tiny random models to go with them."""
