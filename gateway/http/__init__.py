"""HTTP itself: connections, middlewares, event streams, the OpenAPI document. Knows nothing of models."""
