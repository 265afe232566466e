"""What `scripts/bench` runs: load from real sockets, rivals in process and as servers, figures as ratios."""
