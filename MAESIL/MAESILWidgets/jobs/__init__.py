"""Commands in the background, and what they need."""
