"""Metrics of volumes and statistics over patients."""
