"""Which gRPC calls must bypass a proxy.

gRPC itself sends every call, even one to this machine, through the proxy unless its variables exempt the host. It
reads only variables with lower-case names.
"""

from __future__ import annotations

import contextlib
import ipaddress
from collections.abc import Mapping

PROXIES = ("grpc_proxy", "https_proxy", "http_proxy")  # in gRPC's order
EXEMPTIONS = ("no_grpc_proxy", "no_proxy", "NO_PROXY")
LOCAL_NAMES = ("localhost", "ip6-localhost", "ip6-loopback")


def goes_direct(target: str, environ: Mapping[str, str]) -> bool:
    """Whether a call must bypass the proxy, because it goes to this machine or to a host that a variable exempts.

    Args:
        target: a gRPC channel's target: ``HOST:PORT``, with or without a scheme, or a Unix socket.
    """
    host = host_of(target)
    if not host or is_loopback(host):
        return True
    entries = [entry.strip() for name in EXEMPTIONS for entry in environ.get(name, "").split(",")]
    return any(is_exempt(host, entry) for entry in entries)


def find_proxy(target: str, environ: Mapping[str, str]) -> tuple[str, str]:
    """The variable that makes gRPC use a proxy, and its value; both are empty if none does."""
    if goes_direct(target, environ):
        return "", ""
    return next(((name, environ[name]) for name in PROXIES if environ.get(name)), ("", ""))


def host_of(target: str) -> str:
    """The host of a target without port, scheme and brackets; empty for a Unix socket."""
    scheme, colon, rest = target.partition(":")
    if scheme in ("unix", "unix-abstract", "vsock"):
        return ""
    if colon and (rest.startswith("//") or scheme in ("dns", "ipv4", "ipv6", "http", "https")):
        target = rest.removeprefix("//").rpartition("/")[2] if scheme == "dns" else rest.removeprefix("//")
    target = target.partition("/")[0].rpartition("@")[2]
    if target.startswith("["):
        return target[1:].partition("]")[0]
    return target if target.count(":") > 1 else target.partition(":")[0]


def is_loopback(host: str) -> bool:
    """Whether a name or an address means this machine; the unspecified address does, too."""
    name = host.rstrip(".").lower()
    if name in LOCAL_NAMES or name.endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(name.partition("%")[0])
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return address.is_loopback or address.is_unspecified or bool(mapped and mapped.is_loopback)


def is_exempt(host: str, entry: str) -> bool:
    """Whether an entry of NO_PROXY covers a host: ``*``, the host's name or a suffix of it, or its network."""
    if "/" in entry:
        with contextlib.suppress(ValueError):  # the host is not an address, or the entry is not a network
            return ipaddress.ip_address(host) in ipaddress.ip_network(entry, strict=False)
    entry = entry.lstrip(".").lower()
    return entry == "*" or (bool(entry) and f".{host.lower()}".endswith(f".{entry}"))
