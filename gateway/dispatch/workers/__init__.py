"""Who is there: workers, supervisors, models and their names; who is alive; how many there are to be."""
