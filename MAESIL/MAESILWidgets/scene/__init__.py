"""Nodes, views, layouts."""
