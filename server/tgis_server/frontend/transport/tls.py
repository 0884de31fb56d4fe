"""TLS for both ports, from files that may be replaced while the server runs.

The files are checked for changes whenever a client connects: this is cheap compared with a handshake, and needs no
timer. A new certificate that matches its key is used from then on, for new connections only. If the files are
unreadable, do not match (in the middle of a replacement) or are not currently valid, nothing changes.
"""

from __future__ import annotations

import hashlib
import logging
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from tgis_server import failures
from tgis_server.errors import TgisError
from tgis_server.frontend.transport.certificate import Validity, read_own_certificate
from tgis_server.host.regular_file import read_regular
from tgis_server.options import ServeConfig
from tgis_server.words.clock import format_time

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """The contents of the files at one moment, in PEM format."""

    certificate: bytes
    key: bytes
    client_ca: bytes | None


class Tls:
    """The current certificate, its key and the clients' CA. Thread-safe."""

    def __init__(self, config: ServeConfig, certificate: Path, key: Path, now: Callable[[], float] = time.time) -> None:
        """Accept a certificate that is not currently valid, with a warning: only the checks at startup refuse it.

        Raises:
            UsageError: a file is missing or broken, or the key does not match the certificate.
        """
        self._certificate, self._key, self._client_ca = certificate, key, config.tls_client_ca_cert_path
        self._http_mode = config.http_tls
        self._now = now
        self._lock = threading.Lock()  # guards the following fields: gRPC calls from its own threads
        self._stamp = self._stamp_files()
        self._files, self._context, self._validity = self._load()
        self._waits_until: float | None = None  # when a refused certificate becomes valid
        self._logged: set[str] = set()  # problems already logged
        self._judge()

    @classmethod
    def load(cls, config: ServeConfig) -> Tls | None:
        """TLS as configured, or None for plaintext. Raises the errors of the constructor."""
        if config.tls_cert_path is None or config.tls_key_path is None:
            return None
        return cls(config, config.tls_cert_path, config.tls_key_path)

    def grpc_credentials(self) -> grpc.ServerCredentials:
        """Credentials of the gRPC port. A client CA makes client certificates mandatory."""
        sent, _ = self._refresh()

        def fetch() -> grpc.ServerCertificateConfiguration | None:
            """Called by gRPC before each handshake; None means no change."""
            nonlocal sent
            files, _ = self._refresh()
            if files is sent:
                return None
            sent = files
            return to_grpc(files)

        return grpc.dynamic_ssl_server_credentials(
            to_grpc(sent), fetch, require_client_authentication=self._client_ca is not None
        )

    def http_context(self) -> ssl.SSLContext | None:
        """Context of the HTTP port; None for plaintext."""
        if self._http_mode == "off":
            return None
        context = _FreshContext(ssl.PROTOCOL_TLS_SERVER)
        context.tls = self
        return context

    def current_context(self) -> ssl.SSLContext:
        """The context of the current files."""
        return self._refresh()[1]

    @property
    def path(self) -> Path:
        """Path of the certificate."""
        return self._certificate

    def get_expiry(self) -> float:
        """When the certificate in use expires, in seconds since the epoch; NaN if unknown."""
        self._refresh()
        return self._validity.end if self._validity else float("nan")

    def _refresh(self) -> tuple[TlsFiles, ssl.SSLContext]:
        with self._lock:
            stamp = self._stamp_files()
            if stamp != self._stamp or (self._waits_until is not None and self._now() >= self._waits_until):
                self._stamp = stamp  # before reading: later changes are noticed next time
                self._take_new_files()
            self._judge()
            return self._files, self._context

    def _take_new_files(self) -> None:
        self._waits_until = None
        try:
            if self._read() == self._files:
                return
            files, context, validity = self._load()
            now = self._now()
            if validity and not validity.includes(now):
                self._waits_until = validity.start if now < validity.start else None
                raise validity.refusal(self._certificate, now)
        except TgisError as error:
            self._warn_once(f"The TLS certificate in use is kept: {error}")
        else:
            self._files, self._context, self._validity = files, context, validity
            self._logged.clear()
            text = "TLS certificate %s was reloaded: %s"
            logger.info(text, self._certificate, fingerprint(files), extra={"event": "certificate_reloaded"})

    def _judge(self) -> None:
        """Warn before the certificate in use expires, and while it is not valid."""
        validity, now = self._validity, self._now()
        if validity is None:
            return
        if not validity.includes(now):
            self._warn_once(f"The TLS certificate in use is not valid. {validity.refusal(self._certificate, now)}")
        elif validity.ends_soon(now):
            end = format_time(validity.end)
            self._warn_once(f"The TLS certificate in use expires soon, on {end}: replace {self._certificate}.")

    def _warn_once(self, text: str) -> None:
        """Log each problem once; a different time in its text does not make it a new problem."""
        problem = text.partition(", but it is now")[0]
        if problem not in self._logged:
            self._logged.add(problem)
            logger.warning("%s", text)

    def _load(self) -> tuple[TlsFiles, ssl.SSLContext, Validity | None]:
        files = self._read()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            context.load_cert_chain(self._certificate, self._key, password="")  # never prompt on the terminal
            own = read_own_certificate(self._certificate, self._key)
        except (OSError, ValueError) as error:
            raise failures.TLS_PAIR_UNUSABLE.error(
                certificate=self._certificate, key=self._key, reason=explain_ssl_error(error)
            ) from error
        if self._client_ca:
            try:
                context.load_verify_locations(self._client_ca)
            except OSError as error:
                raise failures.TLS_CLIENT_CA_UNUSABLE.error(
                    path=self._client_ca, reason=explain_ssl_error(error)
                ) from error
        if self._http_mode == "mutual":
            context.verify_mode = ssl.CERT_REQUIRED
        if self._read() != files:
            raise failures.TLS_FILES_CHANGING.error(path=self._certificate)
        return files, context, Validity.of(own) if own else None

    def _stamp_files(self) -> list[tuple[int, ...] | None]:
        """The stamps of the files, which change when the files do."""
        return [stamp_of(path) for path in (self._certificate, self._key, self._client_ca) if path]

    def _read(self) -> TlsFiles:
        return TlsFiles(
            read_tls_file(self._certificate),
            read_tls_file(self._key),
            read_tls_file(self._client_ca) if self._client_ca else None,
        )


class _FreshContext(ssl.SSLContext):
    """Gives each new connection the context of the current files."""

    tls: Tls

    def wrap_bio(self, *args: Any, **options: Any) -> ssl.SSLObject:
        """Called by asyncio for each connection."""
        return self.tls.current_context().wrap_bio(*args, **options)


def to_grpc(files: TlsFiles) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration(
        [(files.key, files.certificate)], root_certificates=files.client_ca
    )


def stamp_of(path: Path) -> tuple[int, ...] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def explain_ssl_error(error: Exception) -> str:
    """Why OpenSSL does not accept a file, without OpenSSL's error codes and source locations."""
    reason = (getattr(error, "reason", None) or "").upper()
    if "MISMATCH" in reason:
        return "the key does not belong to the certificate"
    if reason:
        return reason.replace("_", " ").lower()
    if isinstance(error, ssl.SSLError):  # OpenSSL does not say which file it stumbles over
        return "a file is damaged, or not in PEM format"
    return getattr(error, "strerror", None) or str(error)


def read_tls_file(path: Path) -> bytes:
    try:
        return read_regular(path)
    except OSError as error:
        raise failures.TLS_FILE_UNREADABLE.error(path=path, reason=error.strerror) from error


def fingerprint(files: TlsFiles) -> str:
    """The fingerprint in the format of ``openssl x509 -fingerprint -sha256``."""
    _, _, body = files.certificate.decode("ascii", "replace").partition(ssl.PEM_HEADER)
    der = ssl.PEM_cert_to_DER_cert(ssl.PEM_HEADER + body.partition(ssl.PEM_FOOTER)[0] + ssl.PEM_FOOTER)
    return "SHA-256 " + hashlib.sha256(der).digest().hex(":").upper()
