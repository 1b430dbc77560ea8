"""A message as signed bytes."""
