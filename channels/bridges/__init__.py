"""Bridges: maps that carry a state from one model into another."""
