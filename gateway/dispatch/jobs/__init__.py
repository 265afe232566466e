"""Jobs as their handlers and queues see them: streams, whose turn it is."""
