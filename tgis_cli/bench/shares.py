"""Shares on the command line: ``5%`` or ``0.05``."""

from __future__ import annotations

from tgis_server.errors import UsageError

MAX_REGRESS = 0.05  # of `tgis bench compare`


def read_share(text: str, flag: str) -> float:
    """
    Raises:
        UsageError: it is not a share between 0 and 1.
    """
    try:
        share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        share = -1.0
    if not 0 <= share < 1:
        hint = f" Did you mean {share:g}%?" if 1 <= share < 100 else ""
        raise UsageError(f"{flag} is {text!r}, but must be a share below 1, such as 5% or 0.05.{hint}")
    return share
