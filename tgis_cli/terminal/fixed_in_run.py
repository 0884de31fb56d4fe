"""The options of `tgis launch` that `tgis run` sets itself, or leaves out."""

from __future__ import annotations

# For this machine only, on free ports, without restarts, with a log for people. Flags override the environment.
ALWAYS = {
    "host": "127.0.0.1",
    "grpc_port": "0",
    "port": "0",
    "restart": "none",
    "drain_delay": "0",
    "drain_timeout": "2",
    "json_output": False,
}
NOT_FOR_LOOPBACK = ("TLS_CERT_PATH", "TLS_KEY_PATH", "TLS_CLIENT_CA_CERT_PATH", "HTTP_TLS")
FIXED_IN_RUN = frozenset({*ALWAYS, *map(str.lower, NOT_FOR_LOOPBACK), "termination_log"})
