"""What a run costs before it runs: how fast models are here, how long agents write."""
