"""How a command connects to a server: what its command line says, completed with what is known about the server."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tgis_cli.clients.address import GRPC, Address, find_address, to_address
from tgis_cli.clients.tls_files import TlsFiles, name_flags
from tgis_server.errors import UsageError

if TYPE_CHECKING:
    from tgis_cli.runs.servers import RunningServer


@dataclass(frozen=True, slots=True)
class Connection:
    """What a command line says about the connection; ``None`` where it says nothing."""

    url: str | None = None
    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None
    tls_server_name: str | None = None
    server: RunningServer | None = None  # connect to this one instead of looking for one
    url_flag: str = "--url"  # the option that has given the URL

    def find_address(self, environ: Mapping[str, str] = os.environ, protocol: str = GRPC) -> Address:
        """The address to connect to.

        Args:
            protocol: ``HTTP`` for what that port has, unless a URL asks for gRPC.

        Raises:
            UsageError: the options or the environment are wrong or contradictory, or several servers are running.
            Unavailable: the only running server has no port yet.
        """
        given = name_flags(self)
        if self.server is not None:
            return to_address(self.server, protocol, with_tls=bool(given))
        address = find_address(self.url, environ, flag=self.url_flag, protocol=protocol, with_tls=bool(given))
        if given and not address.is_tls:
            scheme = (self.url or environ.get("TGIS_URL", "")).strip().partition(":")[0]
            wanted = f"{address.protocol}s://"
            raise UsageError(f"{given} is given, but {scheme}:// in {address.source} means no TLS: write {wanted}.")
        return address

    def tls_files(self, address: Address) -> TlsFiles | None:
        """The TLS files and the server name for this address; ``None`` for plain text."""
        if not address.is_tls:
            return None
        return own_files(address, TlsFiles(self.ca, self.cert, self.key, self.tls_server_name))


def own_files(address: Address, files: TlsFiles | None) -> TlsFiles | None:
    """Add what is known about a running server of this user: its certificate file is trusted."""
    own = address.server.tls if address.server is not None else None
    if files is None or own is None:
        return files
    name = files.name or pick_name(own.names, address.host)
    return TlsFiles(files.ca or own.certificate, files.cert, files.key, name)


def pick_name(names: tuple[str, ...], host: str) -> str | None:
    """The name to expect in a certificate with these names; ``None`` if they include the host, or there are none."""
    if not names or host in names:
        return None
    return names[0].replace("*", "server", 1)  # *.example.com does not match a name with an asterisk
