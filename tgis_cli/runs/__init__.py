"""Run directories, and the running servers that are found by them."""
