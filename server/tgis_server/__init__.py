"""The serving side of TGIS: front-end, shards, scheduler and engines. Imports nothing from ``tgis_cli``."""

from tgis_server.host.interpreter import leave_current_directory

__version__ = "0.1.0"

leave_current_directory()  # here, because it must run before anything else is imported
