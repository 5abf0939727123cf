"""Evaluation: the protocol behind every figure the project prints."""
