"""Bodies of requests and answers: read under bounds of memory and time, parsed, checked; written in pieces."""
