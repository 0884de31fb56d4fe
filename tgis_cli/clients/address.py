"""Which server a command connects to: no other module decides that.

In this order: ``--url``; the variable ``TGIS_URL``; the ports in the environment (``GRPC_PORT``, for health ``PORT``);
the only running server of this user; the default port of this machine. `tgis health` uses this module too, so it
imports little.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Mapping

from tgis_server.words.addresses import WILDCARDS, bracket

TYPE_CHECKING = False  # importing typing would add a tenth to the import time of `tgis health`
if TYPE_CHECKING:
    from typing import NoReturn

    from tgis_cli.runs.servers import RunningServer

GRPC, HTTP = "grpc", "http"
THIS_MACHINE = "127.0.0.1"
DEFAULT_PORTS = {GRPC: 8033, HTTP: 3000}
PORT_VARIABLES = {GRPC: "GRPC_PORT", HTTP: "PORT"}
SCHEMES = {"grpc": False, "http": False, "grpcs": True, "https": True}  # whether each means TLS
URL_VARIABLE = "TGIS_URL"
WAIT = "`tgis generate --wait` waits for it, and `tgis ps` shows its progress."
EXAMPLE = "127.0.0.1:8033"
NUMBERS = re.compile(r"[0-9.]+")
NO_HOST = re.compile(r"[^\w.-]")  # not allowed in a host name or an IPv4 address


class Address:
    """An address to connect to, and its source. Not a dataclass, which would make the imports a fifth slower."""

    __slots__ = ("host", "is_tls", "port", "protocol", "server", "source")

    def __init__(
        self,
        host: str,
        port: int,
        *,
        is_tls: bool,
        source: str,
        protocol: str = GRPC,
        server: RunningServer | None = None,
    ) -> None:
        """
        Args:
            host: a name or an address, without brackets.
            source: where the address comes from, such as "TGIS_URL".
            protocol: ``GRPC`` or ``HTTP``.
            server: this user's running server at that address, if known.
        """
        self.host, self.port, self.is_tls, self.source = host, port, is_tls, source
        self.protocol, self.server = protocol, server

    @property
    def target(self) -> str:
        """``HOST:PORT``."""
        return f"{bracket(self.host)}:{self.port}"

    def __str__(self) -> str:
        return f"{self.protocol}{'s' * self.is_tls}://{self.target}"

    __repr__ = __str__

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Address) and (str(self), self.source) == (str(other), other.source)

    def __hash__(self) -> int:
        return hash((str(self), self.source))


def find_running_servers() -> list[RunningServer]:
    from tgis_cli.runs.servers import find_running

    return find_running()


def find_address(
    url: str | None,
    environ: Mapping[str, str],
    *,
    flag: str = "--url",
    protocol: str = GRPC,
    with_tls: bool = False,
    find: Callable[[], list[RunningServer]] = find_running_servers,
) -> Address:
    """The address to connect to.

    Args:
        url: from the command line, if given.
        flag: the option that has given it.
        protocol: ``HTTP`` for health, which uses gRPC only if a URL says so.
        with_tls: whether TLS files are given, so that an address without a scheme means TLS.

    Raises:
        UsageError: the URL or the port in the environment cannot be used, or several servers are running.
        Unavailable: the only running server has no port yet.
    """
    if url is not None:
        return parse_url(url, flag, protocol, with_tls=with_tls, bare=protocol)
    if text := environ.get(URL_VARIABLE, "").strip():
        return parse_url(text, URL_VARIABLE, protocol, with_tls=with_tls, bare=GRPC)
    if address := find_in_environment(environ, protocol, with_tls=with_tls, find=find):
        return address
    servers = [server for server in find() if server.is_in_this_network and not server.is_obscure]
    if len(servers) > 1:
        refuse(f"Several servers are running: {list_servers(servers, protocol)}. Choose one with --url HOST:PORT.")
    if servers:
        return to_address(servers[0], protocol, with_tls=with_tls)
    source = "the default, as no server of this user is running"
    return Address(THIS_MACHINE, DEFAULT_PORTS[protocol], is_tls=with_tls, source=source, protocol=protocol)


def find_in_environment(
    environ: Mapping[str, str], protocol: str, *, with_tls: bool, find: Callable[[], list[RunningServer]]
) -> Address | None:
    """The address at which a launcher with the same environment would serve; ``None`` if that gives no port.

    To the launcher, port 0 means any free port, so it is not an address.
    """
    variable = PORT_VARIABLES[protocol]
    text = environ.get(variable, "").strip()
    if not text or text == "0":
        return None
    if not is_port(text):
        refuse(f"The variable {variable} is {text!r}, not a port: unset it, or give --url HOST:PORT.")
    if protocol == HTTP:
        is_tls, server = environ.get("HTTP_TLS", "").strip() in ("server", "mutual"), None
    else:
        is_tls = bool(environ.get("TLS_CERT_PATH", "").strip())
        server = next((each for each in find() if each.grpc_port == int(text)), None) if is_tls else None
    host = environ.get("TGIS_HOST", "").strip()
    host = WILDCARDS.get(host, host)
    return Address(host, int(text), is_tls=is_tls or with_tls, source=variable, protocol=protocol, server=server)


def to_address(server: RunningServer, protocol: str = GRPC, *, with_tls: bool = False) -> Address:
    """The address of a running server of this user.

    Raises:
        Unavailable: the server has no port yet.
    """
    port = server.grpc_port if protocol == GRPC else server.http_port
    if port is None:
        from tgis_server.errors import Unavailable

        raise Unavailable(
            f"The server of {server.model} (pid {server.pid}) is still starting and has no port yet. {WAIT}"
        )
    is_tls = with_tls or (server.tls is not None if protocol == GRPC else server.http_tls != "off")
    source = f"the running server, pid {server.pid}"
    return Address(server.host, port, is_tls=is_tls, source=source, protocol=protocol, server=server)


def list_servers(servers: list[RunningServer], protocol: str) -> str:
    return ", ".join(
        f"{server.title} at {(server.grpc if protocol == GRPC else server.http) or f'no port yet, pid {server.pid}'}"
        for server in servers
    )


def parse_url(text: str, source: str, protocol: str, *, with_tls: bool, bare: str) -> Address:
    """
    Args:
        source: the option or variable that holds the URL.
        protocol: the protocol of the command; a gRPC scheme in the URL overrides ``HTTP``.
        bare: the protocol of a URL without a scheme.

    Raises:
        UsageError: the URL is malformed, or has parts that mean nothing here.
    """
    shown = f"{source} {mask(text)}"
    scheme, has_scheme, rest = text.strip().rpartition("://")
    scheme = scheme.lower()
    if has_scheme and scheme not in SCHEMES:
        refuse(f"{shown} has an unknown scheme: {', '.join(SCHEMES)} are understood.")
    if "@" in rest:
        refuse(f"{shown} has a user or a password, which a server does not ask for: HOST:PORT is enough.")
    host, port = split_host(rest, shown)
    if protocol == HTTP:
        protocol = (GRPC if scheme.startswith(GRPC) else HTTP) if has_scheme else bare
    return Address(host, port, is_tls=SCHEMES.get(scheme, with_tls), source=source, protocol=protocol)


def split_host(rest: str, shown: str) -> tuple[str, int]:
    """The host, without brackets, and the port of a URL whose scheme has been removed.

    Raises:
        UsageError: the text is not ``HOST:PORT``.
    """
    rest, extra = split_extra(rest)
    if extra and rest.endswith(":"):  # such as unix:/tmp/socket
        refuse(f"{shown} is not HOST:PORT, such as {EXAMPLE}.")
    if extra:
        refuse(f"{shown} has more than an address ({extra}): HOST:PORT is enough, here {rest or 'HOST:PORT'}.")
    if is_bare_ipv6(rest):
        host, _, port = rest.rpartition(":")
        guess = "" if host.endswith(":") or not is_port(port) else f"[{host}]:{port}, or "
        refuse(f"{shown} is an IPv6 address without brackets: write {guess}[{rest}]:PORT.")
    host, colon, port = rest.rpartition(":")
    if rest.endswith("]") or not colon or not port:
        guess = f"127.0.0.1:{rest}" if is_port(rest) else rest.rstrip(":") and f"{rest.rstrip(':')}:PORT"
        refuse(f"{shown} is not HOST:PORT, such as {EXAMPLE}{f'; did you mean {guess}?' if guess else '.'}")
    if not host:
        refuse(f"{shown} has no host; did you mean 127.0.0.1:{port}?")
    if "[" in rest and "]" not in rest:
        refuse(f"{shown} has a bracket that is not closed: write [ADDRESS]:PORT, such as [::1]:8033.")
    if not is_port(port):
        refuse(f"{shown} is not HOST:PORT: {port!r} is not a port, a number from 1 to 65535.")
    if host.startswith("[") and host.endswith("]") and is_address(host[1:-1].partition("%")[0], socket.AF_INET6):
        return host[1:-1], int(port)
    if NO_HOST.search(host):
        refuse(f"{shown} is not HOST:PORT: {host!r} is neither a name nor an address.")
    if NUMBERS.fullmatch(host) and not is_address(host, socket.AF_INET):
        refuse(f"{shown} is not HOST:PORT: {host} is not a complete IPv4 address, such as 127.0.0.1.")
    return host.lower(), int(port)


def split_extra(rest: str) -> tuple[str, str]:
    """Return the part before any path, query or fragment, and what was cut off, in words. A final slash is ignored."""
    for mark, name in (("#", "a fragment"), ("?", "a query"), ("/", "a path")):
        head, found, tail = rest.partition(mark)
        if found and (tail or mark != "/"):
            return head.partition("?")[0].partition("/")[0], name
        rest = head
    return rest, ""


def is_bare_ipv6(rest: str) -> bool:
    return (
        rest.count(":") > 1 and "[" not in rest and re.fullmatch(r"[0-9a-fA-F:.]+(%\w+)?(:[0-9]+)?", rest) is not None
    )


def is_port(text: str) -> bool:
    return re.fullmatch(r"[0-9]{1,5}", text) is not None and 1 <= int(text) <= 65535


def is_address(text: str, family: int) -> bool:
    """Whether the text is an address of this family."""
    try:
        socket.inet_pton(family, text)
    except (OSError, ValueError):
        return False
    return True


def mask(text: str) -> str:
    """The URL without a password, for messages."""
    if "@" not in text:
        return text if any(char.isalnum() for char in text) else repr(text)
    from tgis_server.words.url_credentials import mask_credentials

    return mask_credentials(text)


def refuse(sentence: str) -> NoReturn:
    from tgis_server.errors import UsageError

    raise UsageError(sentence)
