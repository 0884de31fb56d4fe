"""Listening on a port, and explaining why that fails. The launcher only tries to listen; the front-end serves."""

from __future__ import annotations

import contextlib
import errno
import os
import socket

from tgis_server import failures
from tgis_server.errors import TgisError
from tgis_server.words.addresses import WILDCARDS

ALL_INTERFACES = tuple(WILDCARDS)


def listen(host: str, port: int, flag: str) -> socket.socket:
    """A listening TCP socket; port 0 means any free port.

    Raises:
        UsageError: the port, set by ``flag``, is taken or not allowed, or the host is not an address of this machine.
    """
    try:
        addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise failures.HOST_UNKNOWN.error(host=host, reason=getattr(error, "strerror", "it is not a name")) from error
    family, _, _, _, address = addresses[0]
    both = host == "::" and socket.has_dualstack_ipv6()
    try:
        return socket.create_server(address, family=family, dualstack_ipv6=both)
    except OSError as error:
        raise explain_bind_error(error, host, port, flag) from error


def explain_bind_error(error: OSError, host: str, port: int, flag: str) -> TgisError:
    match error.errno:
        case errno.EADDRINUSE:
            return failures.PORT_IN_USE.error(port=port, owner=find_owner(port), flag=flag)
        case errno.EACCES:
            return failures.PORT_RESERVED.error(port=port, flag=flag)
        case errno.EADDRNOTAVAIL:
            return failures.HOST_NOT_HERE.error(host=host)
        case _:  # create_server repeats the address in the error's text
            return failures.CANNOT_LISTEN.error(port=port, flag=flag, reason=os.strerror(error.errno or 0))


def find_owner(port: int) -> str:
    """``NAME (pid N)`` if the system reveals it; other users' processes are often hidden."""
    name, pid, _ = find_listener(port)
    return f"{name} (pid {pid})" if pid else "another process"


def find_listener(port: int) -> tuple[str, int, list[str]]:
    """Name, pid and command of the process that listens on a port; empty if the system hides them."""
    import psutil

    with contextlib.suppress(psutil.Error, OSError):
        for connection in psutil.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port and connection.pid:
                process = psutil.Process(connection.pid)
                return process.name(), process.pid, process.cmdline()
    return "", 0, []
