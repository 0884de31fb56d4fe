"""The TLS files: whether they fit together, and how long they are valid."""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tgis_cli.doctor.limits import format_time
from tgis_cli.doctor.verdict import Context, Verdict, failed, ok, warn
from tgis_server import failures
from tgis_server.errors import TgisError

SOON_S = 30 * 86_400.0  # for certificates that live so long; of short-lived ones the last third
NO_CHECK_TIME = ssl.VerifyFlags(0x200000)  # X509_V_FLAG_NO_CHECK_TIME, which the module has no name for


def check_tls(context: Context) -> Iterator[Verdict]:
    """As the front-end will load them; and the dates of all certificates that clients get to see."""
    config = context.config
    if config.tls_cert_path is None or config.tls_key_path is None:
        yield ok("No TLS: both ports are plain text.")
        return
    from tgis_server.frontend.tls import Tls  # and with it grpc

    try:
        Tls.load(config)
    except TgisError as error:
        yield failed(error)
        return
    leaf = read_own_certificate(config.tls_cert_path, config.tls_key_path)
    if leaf is None:
        yield warn(
            f"{config.tls_cert_path} is not accepted as a server's certificate, perhaps because of its purpose "
            "(extendedKeyUsage).",
            "Ask for one with serverAuth.",
        )
    else:
        yield judge_certificate(leaf, config.tls_cert_path, context.host.now(), is_own=True)
    for file in filter(None, (config.tls_cert_path, config.tls_client_ca_cert_path)):
        for certificate in read_authorities(file):
            if certificate != leaf:
                yield judge_certificate(certificate, file, context.host.now(), is_own=False)


def judge_certificate(certificate: dict[str, Any], path: Path, now: float, *, is_own: bool) -> Verdict:
    """Its dates and names. Of several authorities some may be out of date: during a change of them, that is usual."""
    start, end = (ssl.cert_time_to_seconds(certificate[name]) for name in ("notBefore", "notAfter"))
    subject = describe_name(certificate["subject"])
    names = [name for kind, name in certificate.get("subjectAltName", ()) if kind in ("DNS", "IP Address")]
    facts = {"path": str(path), "subject": subject, "names": names, "not_before": start, "not_after": end}
    what = f"The TLS certificate of {subject} in {path}"
    if not start <= now <= end:
        dates = {"start": format_time(start), "end": format_time(end), "now": format_time(now)}
        if is_own:
            return failed(failures.TLS_OUT_OF_DATE.error(subject=subject, path=path, **dates))
        return warn(
            f"{what} is valid from {dates['start']} to {dates['end']} alone.",
            "Renew it, or remove it if another has taken its place.",
            **facts,
        )
    if end - now < min(SOON_S, (end - start) / 3):
        return warn(f"{what} ends soon, on {format_time(end)}.", "Renew it.", **facts)
    if is_own and not names:
        return warn(
            f"{what} has no subjectAltName: clients in Go or Java find no host name in it and refuse it.",
            "Ask for one with the server's DNS names.",
            **facts,
        )
    return ok(f"{what} is valid until {format_time(end)}" + (f", for {', '.join(names)}." if names else "."), **facts)


def describe_name(name: tuple[tuple[tuple[str, str], ...], ...]) -> str:
    """The common name, else the last part of it."""
    parts = {key: value for group in name for key, value in group}
    return parts.get("commonName") or next(reversed(parts.values()), "nobody")


def read_authorities(file: Path) -> list[dict[str, Any]]:
    """The certificates of authorities in a PEM file, such as the intermediate ones of a chain."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(file)
    return context.get_ca_certs()


def read_own_certificate(certificate: Path, key: Path) -> dict[str, Any] | None:
    """The server's own certificate, as a client gets to see it: the module tells contents to the other side alone.

    The client is in memory, trusts what it sees, whatever the date, and talks to nobody else. ``None``: it refuses.
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
