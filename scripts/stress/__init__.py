"""What `scripts/chaos` and `scripts/soak` do to a running pool, and how they judge what its clients got."""
