"""Data for training: the cache and what is drawn from it."""
