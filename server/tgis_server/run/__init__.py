"""One run of the server: its resolved configuration, and the phases of its start."""

from tgis_server.run.resolved_run import Run

__all__ = ["Run"]
