"""Atomic folders, locks of pairs, and who a file is for."""
