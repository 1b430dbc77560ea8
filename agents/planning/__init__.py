"""Which channel each edge gets, and why."""
