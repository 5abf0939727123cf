"""From a volume to its reconstruction, metrics, figure and files."""
