"""Engines behind one small contract (``api.py``). Nothing outside this package names an engine."""
