"""What several families of endpoints share between a checked request and its answer."""
