"""The doctor's checks of ports, TLS files and tracing."""

from __future__ import annotations

import importlib.util
import os
import socket
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest

from doctor_subject import complaints, judge, make_subject, with_files
from tgis_cli.doctor import network
from tgis_cli.doctor.network import check_exposure, check_ports, check_tracing
from tgis_cli.doctor.tls import check_plain_http, check_tls
from tgis_cli.doctor.verdict import Host, Subject

YEAR_S = 365 * 86_400

# -- ports


def test_free_ports_are_listed():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]

    assert judge(check_ports, ports(port)) == [
        ("ok", f"Port {port} (--grpc-port) is free."),
        ("ok", "--port 0: any free port."),
    ]


def ports(grpc_port: int) -> Subject:
    return make_subject({"TGIS_HOST": "127.0.0.1"}, grpc_port=str(grpc_port), port="0")


def test_a_port_in_use_is_a_failure_that_names_its_owner():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        (failure,) = complaints(check_ports, ports(port))

    assert failure.startswith(f"Port {port} is already in use by ")
    assert failure.endswith(f" (pid {os.getpid()}): stop it, or choose another with --grpc-port.")


def test_the_port_of_a_running_server_is_only_a_warning(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(network, "is_held_by_server", lambda port: True)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ((level, warning), _) = judge(check_ports, ports(taken.getsockname()[1]))

    assert level == "warn"
    assert "is used by a running TGIS server: " in warning
    assert warning.endswith("Stop it before starting another one, or choose another port with --grpc-port.")


# -- who can reach the server


def test_listening_on_all_interfaces_without_tls_is_a_warning(tmp_path: Path):
    assert complaints(check_exposure, make_subject(host=Host(root=tmp_path))) == [
        "The server listens on all interfaces without TLS: anyone who reaches this machine may use it. "
        "Use --host 127.0.0.1, or TLS (--tls-cert-path)."
    ]


@pytest.mark.parametrize(
    "environ",
    [
        {"TGIS_HOST": "127.0.0.1"},
        {"TLS_CERT_PATH": "c.pem", "TLS_KEY_PATH": "k.pem"},
        {"TGIS_REHEARSE": "true"},
        {"KUBERNETES_SERVICE_HOST": "10.0.0.1"},
        {"container": "podman"},
    ],
)
def test_it_is_none_on_one_interface_with_tls_in_a_rehearsal_or_in_a_container(tmp_path: Path, environ: dict[str, str]):
    assert complaints(check_exposure, make_subject(environ, host=Host(root=tmp_path))) == []


@pytest.mark.parametrize("file", [".dockerenv", "run/.containerenv"])
def test_files_tell_a_container_too(tmp_path: Path, file: str):
    assert complaints(check_exposure, make_subject(host=with_files(tmp_path, {file: ""}))) == []


# -- TLS


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with an authority, a server chain signed by it, and a self-signed certificate without names."""
    directory = tmp_path_factory.mktemp("tls")
    key = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout"
    (directory / "names").write_text("subjectAltName=DNS:tgis.svc,IP:10.0.0.1")
    (directory / "client").write_text("extendedKeyUsage=clientAuth")
    for words in (
        f"req -x509 {key} ca.key -out ca.pem -subj /CN=authority -days 3650",
        f"req {key} server.key -out server.csr -subj /CN=server",
        "x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -out leaf.pem -days 365 -extfile names",
        "x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -out client.pem -days 365 -extfile client",
        f"req -x509 {key} own.key -out own.pem -subj /O=nameless -days 365",
    ):
        subprocess.run(["openssl", *words.split()], cwd=directory, check=True, capture_output=True)
    (directory / "server.pem").write_text((directory / "leaf.pem").read_text() + (directory / "ca.pem").read_text())
    return directory


def serve(directory: Path, name: str = "server", key: str = "server", *, years: float = 0.0, **more: Path) -> Subject:
    """A subject with these TLS files and with a clock that is some years ahead."""
    files = {"tls_cert_path": directory / f"{name}.pem", "tls_key_path": directory / f"{key}.key"} | more
    host = Host(now=lambda: time.time() + years * YEAR_S)
    return make_subject(host=host, **{option: str(path) for option, path in files.items()})


def test_missing_tls_is_reported():
    assert judge(check_tls, make_subject()) == [("ok", "No TLS: both ports are plain text.")]


@pytest.mark.parametrize("name", ["tls_cert_path", "tls_key_path", "tls_client_ca_cert_path"])
def test_of_an_incomplete_set_of_tls_files_nothing_more_is_said(name: str):
    subject = make_subject()
    loaded = replace(subject.loaded, config=replace(subject.config, **{name: Path("x.pem")}))

    assert judge(check_tls, replace(subject, loaded=loaded)) == []


def test_a_port_that_tls_leaves_out_is_named(authority: Path):
    (verdict,) = judge(check_plain_http, serve(authority))

    assert verdict == (
        "ok",
        "TLS is only on the gRPC port; --http-tls server adds it to the HTTP port, which is plain text.",
    )
    assert judge(check_plain_http, make_subject()) == []


def test_a_chain_is_shown_with_names_and_dates(authority: Path):
    (level, leaf), (_, ca), *rest = judge(check_tls, serve(authority))

    assert level == "ok"
    assert leaf.startswith(f"The TLS certificate of server in {authority}/server.pem is valid until ")
    assert leaf.endswith(" UTC, for tgis.svc, 10.0.0.1.")
    assert ca.startswith(f"The TLS certificate of authority in {authority}/server.pem is valid until ")
    assert rest == []


def test_a_self_signed_certificate_is_reported_once_and_needs_a_name(authority: Path):
    ((level, sentence),) = judge(check_tls, serve(authority, "own", "own"))

    assert level == "warn"
    assert sentence == (
        f"The TLS certificate of nameless in {authority}/own.pem has no subjectAltName: Go and Java clients find no "
        "host name in it and reject it. Request one with the server's DNS names."
    )


def test_a_certificate_that_expires_soon_is_a_warning(authority: Path):
    (warning,) = complaints(check_tls, serve(authority, years=0.97))

    assert warning.startswith(f"The TLS certificate of server in {authority}/server.pem expires soon, on ")


@pytest.mark.parametrize("years", [-1.0, 2.0])
def test_an_invalid_certificate_is_a_failure(authority: Path, years: float):
    failure = complaints(check_tls, serve(authority, years=years))[0]

    assert failure.startswith(f"The TLS certificate of server in {authority}/server.pem is valid from ")
    assert failure.endswith("so clients refuse the certificate: renew it, or correct this machine's clock.")


def test_an_expired_authority_is_only_a_warning(authority: Path):
    subject = serve(authority, "own", "own", years=20, tls_client_ca_cert_path=authority / "ca.pem")

    (level, _), (ca_level, ca) = judge(check_tls, subject)

    assert (level, ca_level) == ("fail", "warn")
    assert ca.startswith(f"The TLS certificate of authority in {authority}/ca.pem is only valid from ")
    assert ca.endswith(" Renew it, or remove it if it has been replaced.")


def test_a_client_certificate_is_a_warning(authority: Path):
    (warning,) = complaints(check_tls, serve(authority, "client"))

    assert warning == (
        f"{authority}/client.pem is not accepted as a server certificate, perhaps because of its purpose "
        "(extendedKeyUsage). Request one with serverAuth."
    )


def test_a_mismatched_certificate_and_key_are_a_failure(authority: Path):
    (failure,) = complaints(check_tls, serve(authority, "server", "own"))

    assert "cannot be used together: the key does not belong to the certificate. " in failure


# -- tracing


def test_tracing_without_its_libraries_is_a_failure(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)

    assert complaints(check_tracing, make_subject({"OTLP_ENDPOINT": "http://collector:4317"})) == [
        "--otlp-endpoint needs libraries that are not installed (opentelemetry.sdk): pip install 'tgis[tracing]'."
    ]


def test_the_collector_is_shown_without_its_password():
    pytest.importorskip("opentelemetry.sdk")

    assert judge(check_tracing, make_subject({"OTLP_ENDPOINT": "http://me:word@collector:4317"})) == [
        ("ok", "Traces go to http://***@collector:4317.")
    ]


def test_without_an_endpoint_tracing_gets_no_verdict():
    assert judge(check_tracing, make_subject()) == []
