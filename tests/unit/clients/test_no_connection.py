"""Why there is no connection."""

from __future__ import annotations

import errno

from tgis_cli.clients.connection import Connection
from tgis_cli.clients.no_connection import explain_error


def test_the_hint_names_the_option_that_has_given_the_address():
    address = Connection(url="127.0.0.1:1", url_flag="--a-url").find_address({})

    sentence = explain_error(address, ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"), 1.0)

    assert sentence.endswith("or give the address with --a-url HOST:PORT.")
