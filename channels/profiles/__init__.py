"""Profiles: which layers a receiver must compute anew of a state that other weights of its base have made."""
