"""Run directories, and the running servers that they tell of."""
