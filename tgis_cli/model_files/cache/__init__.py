"""The cache of models on disk: where it is, what is in it, one writer at a time."""
