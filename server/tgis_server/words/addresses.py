"""How addresses are written, and which mean every interface. `tgis health` uses this module, so it imports nothing."""

from __future__ import annotations

WILDCARDS = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}  # noqa: S104  each with the address that reaches it on this machine


def bracket(host: str) -> str:
    """A host as it is written before a port."""
    return f"[{host}]" if ":" in host else host
