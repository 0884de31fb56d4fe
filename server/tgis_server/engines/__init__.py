"""Engines behind two contracts: ``door.py`` before loading, ``api.py`` afterwards."""
