"""A model, its files and its identity; all of transformers."""
