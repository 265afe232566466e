"""Tool calls in the formats of model families, whole and while they are written."""
