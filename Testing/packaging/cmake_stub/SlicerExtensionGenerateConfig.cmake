# Nothing of a scripted module depends on it.
