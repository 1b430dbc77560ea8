"""How a bridge is fitted."""
