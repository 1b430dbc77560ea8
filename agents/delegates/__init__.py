"""What answers in a model's place: a function, or a workflow."""
