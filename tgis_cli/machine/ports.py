"""Whether a port can be listened on, and who holds it otherwise."""

from __future__ import annotations

import contextlib
import errno
import socket

from tgis_server.errors import UsageError


def check_port(host: str, port: int, flag: str) -> None:
    """Try to listen on a port as the server will; 0 (any free port) is always fine.

    Raises:
        UsageError: the port is taken, not allowed, or the host is not an address of this machine.
    """
    try:
        addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise UsageError(f"--host {host} is not an address: {error.strerror}.") from error
    family, kind, protocol, _, address = addresses[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port in TIME_WAIT is free
        try:
            probe.bind(address)
            probe.listen()
        except OSError as error:
            raise UsageError(explain_bind_error(error, host, port, flag)) from error


def explain_bind_error(error: OSError, host: str, port: int, flag: str) -> str:
    match error.errno:
        case errno.EADDRINUSE:
            owner = find_owner(port)
            stop = "stop it" if owner else "stop what holds it"
            return f"Port {port} is already in use{owner}: {stop}, or choose another with {flag}."
        case errno.EACCES:
            return f"Port {port} needs more rights (ports below 1024 are reserved): choose another with {flag}."
        case errno.EADDRNOTAVAIL:
            return f"--host {host} is not an address of this machine: use 0.0.0.0 to listen on all of them."
        case _:
            return f"Port {port} ({flag}) cannot be listened on: {error.strerror}."


def find_owner(port: int) -> str:
    """`` by NAME (pid N)`` where the system tells; other users' processes are often hidden."""
    import psutil

    with contextlib.suppress(psutil.Error, OSError):
        for connection in psutil.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port and connection.pid:
                return f" by {psutil.Process(connection.pid).name()} (pid {connection.pid})"
    return ""
