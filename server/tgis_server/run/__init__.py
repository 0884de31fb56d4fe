"""One run of the server: its resolved configuration, and the phases of its startup."""

from tgis_server.run.resolved_run import Run

__all__ = ["Run"]
