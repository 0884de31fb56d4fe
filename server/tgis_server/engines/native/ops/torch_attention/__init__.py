"""Attention of the torch reference: cache, plans and kernels. Only ``ops/reference.py`` uses it."""
