"""Checks of the TLS files: whether they match, and how long they are valid."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tgis_cli.doctor.verdict import Subject, Verdict, failed, ok, warn
from tgis_server.errors import TgisError
from tgis_server.words.clock import format_time


def check_tls(subject: Subject) -> Iterator[Verdict]:
    """Load the files as the front-end does, and check the dates of all certificates that clients see."""
    config = subject.config
    if config.tls_cert_path is None or config.tls_key_path is None:
        given = (config.tls_cert_path, config.tls_key_path, config.tls_client_ca_cert_path)
        if config.http_tls == "off" and not any(given):
            yield ok("No TLS: both ports are plain text.")
        return  # an incomplete set is reported with the options
    from tgis_server.frontend.transport.tls import Tls  # and with it grpc

    try:
        Tls.load(config)
    except TgisError as error:
        yield failed(error)
        return
    from tgis_server.frontend.transport.certificate import read_own_certificate

    leaf = read_own_certificate(config.tls_cert_path, config.tls_key_path)
    if leaf is None:
        yield warn(
            f"{config.tls_cert_path} is not accepted as a server certificate, perhaps because of its purpose "
            "(extendedKeyUsage).",
            "Request one with serverAuth.",
        )
    else:
        yield judge_certificate(leaf, config.tls_cert_path, subject.host.now(), is_own=True)
    for file in filter(None, (config.tls_cert_path, config.tls_client_ca_cert_path)):
        for certificate in read_authorities(file):
            if certificate != leaf:
                yield judge_certificate(certificate, file, subject.host.now(), is_own=False)


def check_plain_http(subject: Subject) -> Iterator[Verdict]:
    """Say that TLS, if it is on, leaves the HTTP port out."""
    config = subject.config
    if config.tls_cert_path and config.tls_key_path and config.http_tls == "off":
        yield ok("TLS is only on the gRPC port; --http-tls server adds it to the HTTP port, which is plain text.")


def judge_certificate(certificate: dict[str, Any], path: Path, now: float, *, is_own: bool) -> Verdict:
    """Check dates and names. An expired authority is only worth a warning: bundles keep old ones for a while."""
    from tgis_server.frontend.transport.certificate import Validity, list_alternative_names

    validity = Validity.of(certificate)
    start, end, subject = validity.start, validity.end, validity.subject
    names = list_alternative_names(certificate)
    facts = {"path": str(path), "subject": subject, "names": names, "not_before": start, "not_after": end}
    what = f"The TLS certificate of {subject} in {path}"
    if not validity.includes(now):
        if is_own:
            return failed(validity.refusal(path, now))
        return warn(
            f"{what} is only valid from {format_time(start)} to {format_time(end)}.",
            "Renew it, or remove it if it has been replaced.",
            **facts,
        )
    if validity.ends_soon(now):
        return warn(f"{what} expires soon, on {format_time(end)}.", "Renew it.", **facts)
    if is_own and not names:
        return warn(
            f"{what} has no subjectAltName: Go and Java clients find no host name in it and reject it.",
            "Request one with the server's DNS names.",
            **facts,
        )
    return ok(f"{what} is valid until {format_time(end)}" + (f", for {', '.join(names)}." if names else "."), **facts)


def read_authorities(file: Path) -> list[dict[str, Any]]:
    """The authorities' certificates in a PEM file, such as the intermediate ones of a chain."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(file)
    return context.get_ca_certs()
