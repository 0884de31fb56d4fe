"""The server's certificate as clients see it: its subject and validity. Checked at startup and while in use."""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from tgis_server import failures
from tgis_server.errors import TgisError
from tgis_server.words.clock import format_time

SOON_S = 30 * 86_400.0  # or the last third, for short-lived certificates
NO_CHECK_TIME = ssl.VerifyFlags(0x200000)  # X509_V_FLAG_NO_CHECK_TIME, which the ssl module does not define


@dataclass(frozen=True, slots=True)
class Validity:
    """A certificate's subject, and the start and end of its validity in seconds since the epoch."""

    subject: str
    start: float
    end: float

    @classmethod
    def of(cls, certificate: Mapping[str, Any]) -> Self:
        """Read a certificate as returned by :meth:`ssl.SSLSocket.getpeercert`."""
        start, end = (float(ssl.cert_time_to_seconds(certificate[name])) for name in ("notBefore", "notAfter"))
        return cls(describe_name(certificate["subject"]), start, end)

    def includes(self, now: float) -> bool:
        return self.start <= now <= self.end

    def ends_soon(self, now: float) -> bool:
        """Whether the certificate is due for renewal."""
        return self.end - now < min(SOON_S, (self.end - self.start) / 3)

    def refusal(self, path: Path, now: float) -> TgisError:
        """The error for a certificate that is not currently valid."""
        return failures.TLS_OUT_OF_DATE.error(
            subject=self.subject,
            path=path,
            start=format_time(self.start),
            end=format_time(self.end),
            now=format_time(now),
        )


def describe_name(name: tuple[tuple[tuple[str, str], ...], ...]) -> str:
    """The common name, or the last part of the name if there is none."""
    parts = {key: value for group in name for key, value in group}
    return parts.get("commonName") or next(reversed(parts.values()), "nobody")


def list_names(certificate: Mapping[str, Any]) -> list[str]:
    """The names that a client may expect; without alternative names, the common name."""
    return list_alternative_names(certificate) or [
        value for group in certificate.get("subject", ()) for kind, value in group if kind == "commonName"
    ]


def list_alternative_names(certificate: Mapping[str, Any]) -> list[str]:
    """DNS names before addresses."""
    entries = certificate.get("subjectAltName", ())
    return [value for wanted in ("DNS", "IP Address") for kind, value in entries if kind == wanted]


def read_own_certificate(certificate: Path, key: Path) -> dict[str, Any] | None:
    """Decode the server's own certificate. None if a client would refuse it.

    The ssl module decodes only a peer's certificate, so an in-memory client shakes hands with an in-memory server. The
    client trusts this certificate whatever the date.
    """
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(certificate, key, password="")
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.load_verify_locations(certificate)
    client.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN | NO_CHECK_TIME
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    sides = [client.wrap_bio(to_client, to_server), server.wrap_bio(to_server, to_client, server_side=True)]
    try:
        for side in sides * 3:  # hello, certificate, finished
            with contextlib.suppress(ssl.SSLWantReadError):
                side.do_handshake()
    except ssl.SSLError:
        return None
    return sides[0].getpeercert()
