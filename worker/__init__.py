"""One model per process: a supervisor without MLX, and the engine process it looks after."""
