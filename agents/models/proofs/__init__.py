"""What a model can do with states, found out on the model itself."""
