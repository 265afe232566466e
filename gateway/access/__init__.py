"""Who may do what, and how much of it: keys, permissions, limits, usage. Requests read memory only."""
