"""What transformers writes a context into, layer by layer."""
