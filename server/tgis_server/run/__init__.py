"""One run of the server: its resolved configuration, and the phases of its startup."""

from tgis_server.run.resolved_run import Run, save_unresolved

__all__ = ["Run", "save_unresolved"]
