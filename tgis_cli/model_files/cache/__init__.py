"""The cache of models on disk: its location, the layout of its folders, one writer at a time."""
