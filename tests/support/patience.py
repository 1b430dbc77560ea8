"""How long a test waits for what must come: any slow or busy machine gets there."""

LIMIT_S = 600.0
"""Seconds after which a wait counts as one for ever; nothing is ever compared with it."""
