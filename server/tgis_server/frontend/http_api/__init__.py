"""The HTTP door: probes and metrics."""
