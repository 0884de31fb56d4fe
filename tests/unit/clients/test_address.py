"""Where a client connects: one rule for all commands, and the errors for addresses that cannot be used."""

from __future__ import annotations

from typing import Any

import pytest

from running import TLS, make_running
from tgis_cli.clients.address import GRPC, HTTP, Address, find_address
from tgis_cli.clients.connection import Connection, own_files, pick_name
from tgis_server.errors import Unavailable, UsageError


def find(url: str | None = None, running: Any = (), **options: Any) -> str:
    """The address in words: ``grpcs://HOST:PORT from SOURCE``."""
    environ = options.pop("environ", {})
    address = find_address(url, environ, find=lambda: list(running), **options)
    return f"{address} from {address.source}"


# -- the order


def test_a_url_comes_before_everything_else():
    environ = {"TGIS_URL": "other:1", "GRPC_PORT": "2"}

    assert find("here:3", [make_running()], environ=environ) == "grpc://here:3 from --url"


def test_the_variable_comes_before_the_ports_in_the_environment():
    assert find(environ={"TGIS_URL": " other:1 ", "GRPC_PORT": "2"}) == "grpc://other:1 from TGIS_URL"


def test_the_ports_in_the_environment_come_before_running_servers():
    environ = {"TGIS_URL": "", "GRPC_PORT": "2", "PORT": "4"}

    assert find(running=[make_running()], environ=environ) == "grpc://127.0.0.1:2 from GRPC_PORT"
    assert find(running=[make_running()], environ=environ, protocol=HTTP) == "http://127.0.0.1:4 from PORT"


@pytest.mark.parametrize(
    ("host", "target"),
    [("0.0.0.0", "127.0.0.1:2"), ("::", "[::1]:2"), ("10.0.0.5", "10.0.0.5:2"), (" ", "127.0.0.1:2")],
)
def test_the_host_in_the_environment_is_used_with_the_port(host: str, target: str):
    assert find(environ={"TGIS_HOST": host, "GRPC_PORT": "2"}).startswith(f"grpc://{target} ")


def test_a_port_of_0_in_the_environment_is_not_an_address():
    assert find(running=[make_running()], environ={"GRPC_PORT": "0"}).endswith("from the running server, pid 100")


def test_the_only_running_server_comes_before_the_default():
    server = make_running(grpc_port=9, http_port=7, host="::1")

    assert find(running=[server]) == "grpc://[::1]:9 from the running server, pid 100"
    assert find(running=[server], protocol=HTTP) == "http://[::1]:7 from the running server, pid 100"


def test_without_any_server_the_default_port_of_this_machine_is_used():
    assert find() == "grpc://127.0.0.1:8033 from the default, as no server of this user is running"
    assert find(protocol=HTTP).startswith("http://127.0.0.1:3000 ")


def test_a_server_in_another_network_is_not_found():
    assert find(running=[make_running(is_in_this_network=False)]).startswith("grpc://127.0.0.1:8033 from the default")


def test_several_running_servers_are_listed():
    servers = [make_running(), make_running(pid=200, model="org/name", grpc_port=None, has_been_ready=False)]

    with pytest.raises(UsageError) as refused:
        find(running=servers)

    assert str(refused.value) == (
        "Several servers are running: demo at 127.0.0.1:8033, org/name at no port yet, pid 200. "
        "Choose one with --url HOST:PORT."
    )


def test_a_server_that_has_no_port_yet_is_named():
    with pytest.raises(Unavailable, match=r"demo \(pid 100\) is still starting and has no port yet"):
        find(running=[make_running(grpc_port=None, has_been_ready=False)])


@pytest.mark.parametrize("value", ["tcp://10.0.0.1:80", "80a", "-1", "65536", "\u0663"])
def test_an_invalid_port_in_the_environment_is_a_usage_error(value: str):
    with pytest.raises(UsageError) as refused:
        find(environ={"GRPC_PORT": value})

    assert str(refused.value) == (
        f"The variable GRPC_PORT is {value!r}, not a port: unset it, or give --url HOST:PORT."
    )


# -- schemes and TLS


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("host:1", "grpc://host:1"),
        ("grpc://host:1", "grpc://host:1"),
        ("http://host:1/", "grpc://host:1"),
        ("grpcs://host:1", "grpcs://host:1"),
        ("HTTPS://Host:1", "grpcs://host:1"),
        ("[::1]:1", "grpc://[::1]:1"),
        ("grpc://[fe80::1%eth0]:1", "grpc://[fe80::1%eth0]:1"),
    ],
)
def test_schemes_say_whether_there_is_tls(url: str, address: str):
    assert find(url) == f"{address} from --url"


@pytest.mark.parametrize(
    ("options", "address"),
    [
        ({"url": "h:1"}, "http://h:1"),
        ({"url": "https://h:1"}, "https://h:1"),
        ({"url": "grpc://h:1"}, "grpc://h:1"),
        ({"url": "grpcs://h:1"}, "grpcs://h:1"),
        ({"environ": {"TGIS_URL": "h:1"}}, "grpc://h:1"),
        ({"environ": {"TGIS_URL": "http://h:1"}}, "http://h:1"),
        ({"environ": {"PORT": "8080", "HTTP_TLS": "mutual"}}, "https://127.0.0.1:8080"),
        ({"environ": {"PORT": " ", "HTTP_TLS": "off"}}, "http://127.0.0.1:3000"),
    ],
)
def test_health_uses_http_unless_a_url_means_grpc(options: dict[str, Any], address: str):
    assert find(**options, protocol=HTTP).partition(" ")[0] == address


def test_tls_files_mean_tls_where_no_scheme_says_otherwise():
    assert find("h:1", with_tls=True).startswith("grpcs://h:1")
    assert find("grpc://h:1", with_tls=True).startswith("grpc://h:1")
    assert find(running=[make_running()], with_tls=True).startswith("grpcs://127.0.0.1:8033")
    assert find(with_tls=True).startswith("grpcs://127.0.0.1:8033")


def test_a_running_server_or_the_environment_may_mean_tls():
    assert find(running=[make_running(tls=TLS)]).startswith("grpcs://")
    assert find(running=[make_running(http_tls="server")], protocol=HTTP).startswith("https://")
    assert find(environ={"GRPC_PORT": "8033", "TLS_CERT_PATH": "/x"}).startswith("grpcs://127.0.0.1:8033 from GRPC_")


def test_a_plain_scheme_contradicts_tls_files():
    with pytest.raises(
        UsageError, match=r"^--ca, --key is given, but grpc:// in --url means no TLS: write grpcs://\.$"
    ):
        Connection(url="grpc://h:1", ca="ca.pem", key="key.pem").find_address({})  # type: ignore[arg-type]


def test_the_certificate_of_a_running_server_of_this_user_is_trusted_under_its_own_name():
    server = make_running(tls=TLS)
    connection = Connection(server=server)

    files = connection.tls_files(connection.find_address({}))

    assert files is not None
    assert (files.ca, files.name) == (TLS.certificate, "tgis.example.com")


def test_tls_options_on_the_command_line_come_first():
    address = find_address(None, {}, find=lambda: [make_running(tls=TLS)])
    given = Connection(ca="ca.pem", tls_server_name="other").tls_files(address)  # type: ignore[arg-type]

    assert given is not None
    assert (given.ca, given.name) == ("ca.pem", "other")
    assert own_files(Address("h", 1, is_tls=False, source="--url"), None) is None


@pytest.mark.parametrize(
    ("names", "name"),
    [
        ((), None),
        (("localhost", "127.0.0.1"), None),
        (("localhost",), "localhost"),
        (("*.example.com",), "server.example.com"),
    ],
)
def test_a_name_is_expected_only_if_the_certificate_is_not_for_the_address(names: tuple[str, ...], name: str | None):
    assert pick_name(names, "127.0.0.1") == name


# -- mistyped


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        ("", "'' is not HOST:PORT, such as 127.0.0.1:8033."),
        ("host", "host is not HOST:PORT, such as 127.0.0.1:8033; did you mean host:PORT?"),
        ("grpc://host", "grpc://host is not HOST:PORT, such as 127.0.0.1:8033; did you mean host:PORT?"),
        ("8033", "8033 is not HOST:PORT, such as 127.0.0.1:8033; did you mean 127.0.0.1:8033?"),
        (":8033", ":8033 has no host; did you mean 127.0.0.1:8033?"),
        ("host:", "host: is not HOST:PORT, such as 127.0.0.1:8033; did you mean host:PORT?"),
        ("host:0", "host:0 is not HOST:PORT: '0' is not a port, a number from 1 to 65535."),
        ("host:70000", "host:70000 is not HOST:PORT: '70000' is not a port, a number from 1 to 65535."),
        ("h:999999", "h:999999 is not HOST:PORT: '999999' is not a port, a number from 1 to 65535."),
        ("host:-1", "host:-1 is not HOST:PORT: '-1' is not a port, a number from 1 to 65535."),
        ("host:\u0661", "host:\u0661 is not HOST:PORT: '\u0661' is not a port, a number from 1 to 65535."),
        ("::1", "::1 is an IPv6 address without brackets: write [::1]:PORT."),
        ("::1:8033", "::1:8033 is an IPv6 address without brackets: write [::1]:8033, or [::1:8033]:PORT."),
        ("[::1]", "[::1] is not HOST:PORT, such as 127.0.0.1:8033; did you mean [::1]:PORT?"),
        ("[nonsense]:1", "[nonsense]:1 is not HOST:PORT: '[nonsense]' is neither a name nor an address."),
        ("x[::1]:3", "x[::1]:3 is not HOST:PORT: 'x[::1]' is neither a name nor an address."),
        ("a b:1", "a b:1 is not HOST:PORT: 'a b' is neither a name nor an address."),
        ("127.1:9001", "127.1:9001 is not HOST:PORT: 127.1 is not a complete IPv4 address, such as 127.0.0.1."),
        (":", "':' is not HOST:PORT, such as 127.0.0.1:8033."),
        ("[::1", "[::1 has a bracket that is not closed: write [ADDRESS]:PORT, such as [::1]:8033."),
        ("unix:/tmp/x", "unix:/tmp/x is not HOST:PORT, such as 127.0.0.1:8033."),
        ("ftp://h:1", "ftp://h:1 has an unknown scheme: grpc, http, grpcs, https are understood."),
        ("htp:h:1", "htp:h:1 is not HOST:PORT: 'htp:h' is neither a name nor an address."),
        ("http://h:1/v1", "http://h:1/v1 has more than an address (a path): HOST:PORT is enough, here h:1."),
        ("h:1?x=1", "h:1?x=1 has more than an address (a query): HOST:PORT is enough, here h:1."),
        ("h:1/#x", "h:1/#x has more than an address (a fragment): HOST:PORT is enough, here h:1."),
        (
            "https://me:secret@h:1",
            "https://***@h:1 has a user or a password, which a server does not ask for: HOST:PORT is enough.",
        ),
    ],
)
@pytest.mark.parametrize("protocol", [GRPC, HTTP])
def test_an_address_that_cannot_be_used_is_a_usage_error(url: str, complaint: str, protocol: str):
    with pytest.raises(UsageError) as refused:
        find(url, protocol=protocol)

    assert str(refused.value) == f"--url {complaint}"


def test_a_malformed_variable_is_named():
    with pytest.raises(UsageError, match=r"^TGIS_URL nonsense is not HOST:PORT"):
        find(environ={"TGIS_URL": "nonsense"})
