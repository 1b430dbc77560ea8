"""Caches across fine-tunes of one base."""
