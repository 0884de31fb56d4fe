"""Engines behind one small contract (``api.py``). Only the launcher, which chooses one, names them."""
