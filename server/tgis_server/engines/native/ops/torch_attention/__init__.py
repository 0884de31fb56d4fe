"""Attention of the torch reference: its cache, plans and kernels. Known to ``ops/reference.py`` alone."""
