"""Measuring a server as its users feel it: load, engine, start, and comparisons of results."""
