"""The workflow as data, and what is wrong with it."""
