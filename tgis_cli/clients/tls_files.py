"""The client's TLS files: which are given, and what is wrong with one that cannot be used.

Each file is read once, so it may be a pipe, such as ``<(vault read ...)``.

`tgis health` uses this module too, so it imports little.
"""

from __future__ import annotations

import contextlib
import os

TYPE_CHECKING = False  # importing typing would add a tenth to the import time of `tgis health`
if TYPE_CHECKING:
    import ssl
    from collections.abc import Iterator
    from pathlib import Path
    from typing import NoReturn, Protocol

    class HasTlsOptions(Protocol):
        """Parsed TLS options of a command line."""

        @property
        def ca(self) -> Path | None: ...
        @property
        def cert(self) -> Path | None: ...
        @property
        def key(self) -> Path | None: ...
        @property
        def tls_server_name(self) -> str | None: ...


MAX_BYTES = 16 << 20  # many times the size of a bundle of all CAs; an endless file is refused
CERTIFICATE, PRIVATE_KEY = b"-----BEGIN CERTIFICATE-----", b"PRIVATE KEY-----"

# Where distributions keep the CAs that the system trusts.
SYSTEM_ROOTS = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
)


class TlsFiles:
    """Files and expected name of one connection; all ``None`` if the system's CAs and the host's name suffice."""

    __slots__ = ("_contents", "ca", "cert", "key", "name")

    def __init__(self, ca: Path | None, cert: Path | None, key: Path | None, name: str | None) -> None:
        """
        Args:
            key: ``None`` if the certificate's file contains it too.
            name: that the server's certificate must be for; ``None``: the host's.
        """
        self.ca, self.cert, self.key, self.name = ca, cert, key, name
        self._contents: dict[Path, bytes] = {}

    def make_context(self, *, verify: bool = True) -> ssl.SSLContext:
        """
        Args:
            verify: check the server's certificate.

        Raises:
            UsageError: a file or the name cannot be used.
        """
        import ssl

        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # as in gRPC: --ca may be the server's own certificate
        if not verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        if self.name is not None and not is_name(self.name):
            refuse(f"--tls-server-name {self.name!r} is not a name that a certificate can have.")
        if self.ca is not None:
            self._load_ca(context, self.ca)
        elif verify:
            roots = find_system_roots()
            context.load_verify_locations(roots) if roots else context.load_default_certs()
        if self.cert is not None:
            self._load_pair(context, self.cert, self.key or self.cert)
        elif self.key is not None:
            refuse(f"--key {self.key} is given without --cert: the server needs the certificate too.")
        return context

    def for_grpc(self) -> tuple[bytes | None, bytes | None, bytes | None]:
        """The CA, the client's key and its certificate, all PEM.

        Raises:
            UsageError: a file or the name cannot be used.
        """
        self.make_context()
        if self.cert is None:
            return self._ca_for_grpc(), None, None
        return self._ca_for_grpc(), self._read(self.key or self.cert, "--key"), self._read(self.cert, "--cert")

    def _ca_for_grpc(self) -> bytes | None:
        """The CA for gRPC, which does not use the system's CAs by itself; ``None`` leaves the choice to gRPC."""
        if self.ca is not None:
            return self._read(self.ca, "--ca")
        roots = find_system_roots()
        if roots is None or os.environ.get("GRPC_DEFAULT_SSL_ROOTS_FILE_PATH"):
            return None
        with open(roots, "rb") as file:
            return file.read()

    def _load_ca(self, context: ssl.SSLContext, ca: Path) -> None:
        import ssl

        content = self._read(ca, "--ca")
        try:
            context.load_verify_locations(
                cadata=content.decode("ascii", "ignore")
            )  # bundles have names in comments, not always in ASCII
        except ssl.SSLError:
            refuse(f"--ca {ca} has no certificate: it must be a PEM file ({CERTIFICATE.decode()}).")

    def _load_pair(self, context: ssl.SSLContext, cert: Path, key: Path) -> None:
        import ssl

        certificate = self._read(cert, "--cert")
        if CERTIFICATE not in certificate:
            refuse(f"--cert {cert} has no certificate: it must be a PEM file ({CERTIFICATE.decode()}).")
        private = self._read(key, "--key")
        if PRIVATE_KEY not in private:
            hint = f"--key {key} has no key" if key != cert else f"--cert {cert} has no key, and --key is not given"
            refuse(f"{hint}: give the PEM file with the private key of the certificate with --key FILE.")
        asked: list[bool] = []

        def note_question() -> str:
            asked.append(True)
            return ""

        try:
            with in_memory(certificate) as first, in_memory(private) as second:
                context.load_cert_chain(first, second, password=note_question)
        except (ssl.SSLError, ValueError) as error:
            if asked:
                refuse(f"--key {key} is encrypted: decrypt it with `openssl pkey -in {key} -out FILE`.")
            if "MISMATCH" in describe(error).upper():
                refuse(
                    f"--key {key} does not belong to the certificate --cert {cert}: give the key that it was made for."
                )
            refuse(f"--cert {cert} and --key {key} cannot be used: one of them is damaged.")

    def _read(self, file: Path, flag: str) -> bytes:
        """
        Raises:
            UsageError: the file cannot be read.
        """
        if file not in self._contents:
            try:
                with open(file, "rb") as stream:
                    self._contents[file] = stream.read(MAX_BYTES)
            except OSError as error:
                refuse(f"{flag} {file} cannot be read: {error.strerror}.")
        return self._contents[file]


@contextlib.contextmanager
def in_memory(content: bytes) -> Iterator[str]:
    """A path to a file with this content, for OpenSSL, which reads a pair only from files."""
    file = os.memfd_create("tls")
    try:
        os.write(file, content)
        yield f"/proc/self/fd/{file}"
    finally:
        os.close(file)


def find_system_roots() -> str | None:
    """The file of CAs that the variable ``SSL_CERT_FILE`` names, or that the system trusts."""
    candidates = (os.environ.get("SSL_CERT_FILE", ""), *SYSTEM_ROOTS)
    return next((file for file in candidates if file and os.path.isfile(file)), None)


def is_name(text: str) -> bool:
    """Whether the text can be a host name; Python's ssl refuses others with an error of its own."""
    return (
        bool(text) and text[0] != "." and text.isascii() and not any(char.isspace() or char in "/[]" for char in text)
    )


def name_flags(options: HasTlsOptions) -> str:
    """The TLS options that are given, for messages; empty if none is."""
    flags = {
        "--ca": options.ca,
        "--cert": options.cert,
        "--key": options.key,
        "--tls-server-name": options.tls_server_name,
    }
    return ", ".join(flag for flag, value in flags.items() if value is not None)


def describe(error: Exception) -> str:
    """OpenSSL's reason in lower case, without its numbers."""
    return str(getattr(error, "reason", None) or error).replace("_", " ").lower()


def refuse(sentence: str) -> NoReturn:
    from tgis_server.errors import UsageError

    raise UsageError(sentence)
