"""A CT volume: read, checked, put on the model's grid and back, written."""
