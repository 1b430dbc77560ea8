"""Evaluations: a workflow over rows, its messages carried in several ways, and what that is worth.

Rows are run under arms, which differ in how messages go. Scorers say how good an answer is, and
statistics say what the difference between two arms shows.
"""
