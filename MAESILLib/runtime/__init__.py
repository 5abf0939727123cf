"""How a command runs and ends."""
