"""Why the load generator has no connection."""

from __future__ import annotations

import errno

import pytest

from tgis_cli.bench.http2.channel import describe


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(errno.ECONNREFUSED, "Connect call failed ('127.0.0.1', 40821)"), "Connection refused"),
        (
            OSError("Multiple exceptions: [Errno 111] Connect call failed ('::1', 1), [Errno 111] Connect call failed"),
            "Connection refused",
        ),
        (OSError(errno.ECONNRESET, "Connection reset by peer"), "Connection reset by peer"),
    ],
)
def test_a_refused_connection_is_called_so(error: OSError, reason: str):
    assert describe(error) == reason
