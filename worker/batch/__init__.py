"""Continuous batching over mlx-lm's caches: per-row sampling, cohorts, prefill, prefix cache. For chat and vision."""
