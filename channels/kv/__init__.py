"""A cache as a value: its geometry, its state, its rotation and its bytes."""
