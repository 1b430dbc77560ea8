"""Where states are kept: by content, within a budget, in memory or on disk."""
