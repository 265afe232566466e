"""What several types of requests and answers share; a family's own types stand in a file of its own above."""
