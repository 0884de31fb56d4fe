"""The client's TLS files: which are given, and what is wrong with one that cannot be used.

`tgis health` uses it too, so it imports little.
"""

from __future__ import annotations

import os
import ssl

TYPE_CHECKING = False  # importing typing would add a tenth to the imports of `tgis health`
if TYPE_CHECKING:
    from pathlib import Path
    from typing import NoReturn, Protocol

    class HasTlsOptions(Protocol):
        """The options, as a command has read them."""

        @property
        def ca(self) -> Path | None: ...
        @property
        def cert(self) -> Path | None: ...
        @property
        def key(self) -> Path | None: ...
        @property
        def tls_server_name(self) -> str | None: ...


# Where distributions keep the CAs that the system trusts.
SYSTEM_ROOTS = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
)


class TlsFiles:
    """Files and expected name of one connection. All are ``None`` if the system's roots and the host's name will do."""

    __slots__ = ("ca", "cert", "key", "name")

    def __init__(self, ca: Path | None, cert: Path | None, key: Path | None, name: str | None) -> None:
        """
        Args:
            key: ``None``: the file of the certificate has it too.
            name: that the server's certificate must be for; ``None``: the host's.
        """
        self.ca, self.cert, self.key, self.name = ca, cert, key, name

    def make_context(self, *, verify: bool = True) -> ssl.SSLContext:
        """
        Args:
            verify: check the server's certificate.

        Raises:
            UsageError: a file cannot be used.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # as in gRPC: --ca may be the server's own certificate
        if not verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        if self.ca is not None:
            load_ca(context, self.ca)
        elif verify:
            roots = find_system_roots()
            context.load_verify_locations(roots) if roots else context.load_default_certs()
        if self.cert is not None:
            load_pair(context, self.cert, self.key or self.cert)
        elif self.key is not None:
            refuse(f"--key {self.key} is given without --cert: the server needs the certificate too.")
        return context

    def read(self) -> tuple[bytes | None, bytes | None, bytes | None]:
        """The CA, the key and the certificate for gRPC, all PEM.

        Raises:
            UsageError: a file cannot be used.
        """
        self.make_context()
        ca = self.ca or (None if os.environ.get("GRPC_DEFAULT_SSL_ROOTS_FILE_PATH") else find_system_roots())
        key = self.key or self.cert
        return tuple(None if file is None else read_pem(file) for file in (ca, key, self.cert))  # type: ignore[return-value]


def find_system_roots() -> str | None:
    """The file with the CAs that the system trusts, or that the variable ``SSL_CERT_FILE`` names."""
    candidates = (os.environ.get("SSL_CERT_FILE", ""), *SYSTEM_ROOTS)
    return next((file for file in candidates if file and os.path.isfile(file)), None)


def name_flags(options: HasTlsOptions) -> str:
    """The TLS options that are given, for messages; empty if none is."""
    flags = {
        "--ca": options.ca,
        "--cert": options.cert,
        "--key": options.key,
        "--tls-server-name": options.tls_server_name,
    }
    return ", ".join(flag for flag, value in flags.items() if value is not None)


def load_ca(context: ssl.SSLContext, ca: Path) -> None:
    read_pem(ca, "--ca")
    try:
        context.load_verify_locations(ca)
    except ssl.SSLError:
        refuse(f"--ca {ca} has no certificate: it must be a PEM file (-----BEGIN CERTIFICATE-----).")
    if not context.cert_store_stats()["x509"]:
        refuse(f"--ca {ca} has no certificate: it must be a PEM file (-----BEGIN CERTIFICATE-----).")


def load_pair(context: ssl.SSLContext, cert: Path, key: Path) -> None:
    if b"-----BEGIN CERTIFICATE" not in read_pem(cert, "--cert"):
        refuse(f"--cert {cert} has no certificate: it must be a PEM file (-----BEGIN CERTIFICATE-----).")
    if b"PRIVATE KEY-----" not in read_pem(key, "--key"):
        hint = f"--key {key} has no key" if key != cert else f"--cert {cert} has no key in it, and --key is not given"
        refuse(f"{hint}: give the PEM file with the private key of the certificate with --key FILE.")
    asked: list[bool] = []

    def note_question() -> str:
        asked.append(True)
        return ""

    try:
        context.load_cert_chain(cert, key, password=note_question)
    except (ssl.SSLError, ValueError) as error:
        if asked:
            refuse(f"--key {key} is encrypted: decrypt it with `openssl pkey -in {key} -out FILE`.")
        if getattr(error, "reason", "") == "KEY_VALUES_MISMATCH" or "MISMATCH" in (getattr(error, "reason", "") or ""):
            refuse(f"--key {key} does not belong to the certificate --cert {cert}: give the pair of one request.")
        refuse(f"--cert {cert} and --key {key} cannot be used: they must be PEM files ({describe(error)}).")


def read_pem(file: Path | str, flag: str = "") -> bytes:
    """
    Raises:
        UsageError: the file cannot be read.
    """
    try:
        with open(file, "rb") as stream:
            return stream.read()
    except (OSError, ValueError) as error:
        refuse(f"{flag} {file} cannot be read: {getattr(error, 'strerror', None) or error}.".lstrip())


def describe(error: Exception) -> str:
    """OpenSSL's reason in lower case, without its numbers."""
    return str(getattr(error, "reason", None) or error).replace("_", " ").lower()


def refuse(sentence: str) -> NoReturn:
    from tgis_server.errors import UsageError

    raise UsageError(sentence)
