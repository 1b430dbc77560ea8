"""When agents fire, what is in flight, what is recorded."""
