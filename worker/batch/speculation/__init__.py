"""Speculative decoding: rows with a draft, and when that pays."""
