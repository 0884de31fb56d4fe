"""The command that the announcement suggests works when it is pasted, in any directory."""

from __future__ import annotations

from pathlib import Path

import pytest

from running import make_running
from tgis_cli.supervisor.first_request import is_found_by_clients, read_names, write_first_request
from tgis_server.options import ServeConfig

TLS = {"tls_cert_path": Path("certs/it's.pem"), "tls_key_path": Path("certs/key.pem")}


def write(names: tuple[str, ...] = (), *, grpc: str = "127.0.0.1:8033", is_found: bool = False, **config: Path) -> str:
    return write_first_request(ServeConfig(**config), grpc, names, is_found=is_found)


def test_where_a_client_finds_the_server_it_needs_no_address():
    assert write(is_found=True) == 'tgis generate "Once upon a time"'
    assert write(("a",), is_found=True, **TLS) == 'tgis generate "Once upon a time"'


def test_elsewhere_the_address_is_given():
    assert write(grpc="[::1]:8033") == 'tgis generate --url [::1]:8033 "Once upon a time"'


@pytest.mark.parametrize(
    ("names", "options"),
    [
        ((), "--url 127.0.0.1:8033 --ca {ca}"),
        (("127.0.0.1",), "--url 127.0.0.1:8033 --ca {ca}"),
        (("x.org", "localhost"), "--url localhost:8033 --ca {ca}"),
        (("x.org",), "--url 127.0.0.1:8033 --ca {ca} --tls-server-name x.org"),
    ],
)
def test_with_tls_the_certificate_is_verified_under_a_name_that_it_has(names: tuple[str, ...], options: str):
    ca = f"'{Path.cwd()}/certs/it'\"'\"'s.pem'"

    assert write(names, **TLS) == f'tgis generate {options.format(ca=ca)} "Once upon a time"'


def test_with_mutual_tls_the_clients_files_are_named_as_in_the_docs():
    suggestion = write(is_found=True, tls_client_ca_cert_path=Path("ca.pem"), **TLS)

    assert suggestion == 'tgis generate --cert client.crt --key client.key "Once upon a time"'


@pytest.mark.parametrize(
    ("pids", "environ", "is_found"),
    [
        ((100,), {}, True),
        ((100,), {"GRPC_PORT": "8033"}, True),
        ((100,), {"GRPC_PORT": "0", "PORT": "1"}, True),
        ((100,), {"GRPC_PORT": "9"}, False),
        ((100,), {"GRPC_PORT": "nonsense"}, False),
        ((100,), {"TGIS_URL": "127.0.0.1:8033"}, False),
        ((100, 200), {}, False),
        ((), {}, False),
    ],
)
def test_a_client_finds_the_only_server_unless_the_environment_leads_elsewhere(
    pids: tuple[int, ...], environ: dict[str, str], is_found: bool, monkeypatch: pytest.MonkeyPatch
):
    servers = [make_running(pid=pid, grpc_port=None, has_been_ready=False) for pid in pids]
    monkeypatch.setattr("tgis_cli.supervisor.first_request.find_running", lambda: servers)

    assert is_found_by_clients(100, 8033, environ) is is_found


def test_without_a_readable_certificate_there_are_no_names(tmp_path: Path):
    assert read_names(None, None) == ()
    assert read_names(tmp_path / "none.pem", tmp_path / "none.key") == ()
