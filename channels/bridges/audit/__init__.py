"""How good a bridge is: rows, controls, figures."""
