"""One run of the server: its configuration, and what its processes tell each other about its start."""

from tgis_server.run.run import Run

__all__ = ["Run"]
