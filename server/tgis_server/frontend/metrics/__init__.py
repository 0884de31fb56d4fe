"""The server's metrics and the text of ``/metrics``."""

from tgis_server.frontend.metrics.metrics import SPECS, Metrics
from tgis_server.frontend.metrics.text import MetricsText

__all__ = ["SPECS", "Metrics", "MetricsText"]
