"""Commands about what is kept: runs and sessions."""
