"""Measuring a server as its users experience it: load, engine, start, and comparisons of results."""
