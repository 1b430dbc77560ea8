"""Sequential models of workflows, and runs to compare with them."""
