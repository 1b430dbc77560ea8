"""The common decoder layer, computed with few operations."""
