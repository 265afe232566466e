"""JSON schemas: what of them is enforced. The same to gateway and worker."""
