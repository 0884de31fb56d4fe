"""The serving side of TGIS: front-end, shards, scheduler and engines. Imports nothing from ``tgis_cli``."""

__version__ = "0.1.0"
