"""The HTTP face of the pool: auth, limits, schemas, SSE, and the dispatcher of jobs to workers. Knows no MLX."""
