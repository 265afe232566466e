"""The embedding engine: texts and images in, vectors out."""
