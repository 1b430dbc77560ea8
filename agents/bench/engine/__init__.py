"""Benchmarks of the engine: many agents at a time, their memory, their patience."""
