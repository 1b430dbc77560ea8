"""Where models live and compute."""
