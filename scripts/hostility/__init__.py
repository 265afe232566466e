"""Attacks on a running pool, and what everybody else notices of them: see `scripts/hostile`."""
