"""Public CT data sets: what they are, and the cases in a folder of one."""
