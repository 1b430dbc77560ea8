"""Many sequences in one forward, packed one after another."""
