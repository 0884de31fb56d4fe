"""One run of the server: its configuration, and what its processes tell each other about its start."""

from tgis_server.run.resolved_run import Run

__all__ = ["Run"]
