"""When a certificate is accepted, and the warnings about one in use; the tests set the dates of certificates."""

from __future__ import annotations

import shutil
import ssl
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tgis_server.frontend.transport import tls
from tgis_server.frontend.transport.tls import Tls
from tgis_server.options import ServeConfig

DAY_S = 86_400.0
NOW = 1_800_000_000.0
FORMAT = "%b %d %H:%M:%S %Y GMT"


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two certificates with their keys."""
    directory = tmp_path_factory.mktemp("pairs")
    for name in ("first", "second"):
        words = f"req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout {name}.key -out {name}.pem"
        command = ["openssl", *words.split(), "-subj", f"/CN={name}"]
        subprocess.run(command, cwd=directory, check=True, capture_output=True)
    return directory


class Server:
    """Files in use, a clock, and the dates of each certificate, in days from the start."""

    def __init__(self, pairs: Path, directory: Path, patch: pytest.MonkeyPatch, **days: tuple[float, float]) -> None:
        patch.setattr(tls, "read_own_certificate", self.read)
        self.now = NOW
        self._pairs, self._directory, self._days = pairs, directory, days
        self.put("first")
        paths = {f"tls_{kind}_path": directory / kind for kind in ("cert", "key")}
        self.tls = Tls(ServeConfig(**paths), directory / "cert", directory / "key", lambda: self.now)

    def put(self, name: str) -> None:
        shutil.copy(self._pairs / f"{name}.pem", self._directory / "cert")
        shutil.copy(self._pairs / f"{name}.key", self._directory / "key")

    def read(self, certificate: Path, key: Path) -> dict[str, Any]:
        name = next(n for n in self._days if (self._pairs / f"{n}.pem").read_bytes() == certificate.read_bytes())
        start, end = (time.gmtime(NOW + day * DAY_S) for day in self._days[name])
        dates = {"notBefore": time.strftime(FORMAT, start), "notAfter": time.strftime(FORMAT, end)}
        return {"subject": ((("commonName", name),),), **dates}

    def connect(self, day: float) -> float:
        """Connect a client on this day; returns the day on which the certificate it gets expires."""
        self.now = NOW + day * DAY_S
        assert isinstance(self.tls.current_context(), ssl.SSLContext)
        return (self.tls.get_expiry() - NOW) / DAY_S


@pytest.fixture
def start(pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Server]:
    def start_server(**days: tuple[float, float]) -> Server:
        return Server(pairs, tmp_path, monkeypatch, **days)

    return start_server


def test_a_certificate_that_is_not_valid_yet_is_used_once_it_becomes_valid(
    start: Callable[..., Server], caplog: pytest.LogCaptureFixture
):
    server = start(first=(-10, 400), second=(5, 500))
    server.put("second")

    assert [server.connect(day) for day in (0, 1, 4.9)] == [400, 400, 400]
    assert server.connect(5.1) == 500
    [kept] = caplog.messages
    assert kept.startswith("The TLS certificate in use is kept: The TLS certificate of second in ")


def test_there_is_one_warning_before_expiry_and_one_after(
    start: Callable[..., Server], caplog: pytest.LogCaptureFixture
):
    server = start(first=(-10, 50))

    for day in (0, 29, 31, 32, 49, 51, 60):
        server.connect(day)

    soon, ended = caplog.messages
    assert soon.startswith("The TLS certificate in use expires soon, on 2027-03-06 ")
    assert ended.startswith("The TLS certificate in use is not valid. The TLS certificate of first in ")


def test_a_replacement_ends_the_warnings_about_the_old_certificate(
    start: Callable[..., Server], caplog: pytest.LogCaptureFixture
):
    server = start(first=(-30, 5), second=(-1, 400))
    server.put("second")

    assert [server.connect(day) for day in (0, 6)] == [400, 400]
    assert len(caplog.messages) == 1  # at startup


def test_a_certificate_with_unknown_dates_is_not_judged(start: Callable[..., Server], monkeypatch: pytest.MonkeyPatch):
    server = start(first=(-10, 400), second=(-10, -5))
    monkeypatch.setattr(tls, "read_own_certificate", lambda *_: None)
    server.put("second")

    assert str(server.connect(0)) == "nan"
