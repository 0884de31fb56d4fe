"""``tgis health``: query a server's health, over HTTP unless a URL asks for gRPC.

Container platforms run it every few seconds, so it imports as little as possible: no part of the server, and not the
framework of the other commands. gRPC is imported only when it is used.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import ssl
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tgis_cli.clients.address import GRPC, HTTP, Address, find_address
from tgis_cli.terminal.argument_parser import ArgumentParser

TYPE_CHECKING = False  # importing typing would add a tenth to the import time
if TYPE_CHECKING:
    from typing import Any

    from tgis_cli.clients.tls_files import TlsFiles

ANSWERS = {"ready": "ready", "live": "live", "startup": "started"}  # by probe: the answer of a healthy server
SERVICES = {"ready": "fmaas.GenerationService", "live": "live", "startup": "startup"}  # of grpc.health.v1
MAX_TIMEOUT_S = 3600
DESCRIPTION = "Check the health of a running server."
EPILOG = "Exit code 0: healthy; 1: unhealthy, or no server; 2: wrong options."


def main(argv: Sequence[str], environ: Mapping[str, str]) -> int:
    """Query once and print the answer; return the exit code."""
    try:
        try:
            return run(argv, environ)
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()  # find a full disk or a closed pipe here, not while the interpreter shuts down
    except OSError as error:
        from tgis_cli.terminal.exits import end_with

        end_with(error)


def run(argv: Sequence[str], environ: Mapping[str, str]) -> int:
    """
    Raises:
        OSError: the answer cannot be printed.
    """
    options = make_parser().parse_args(argv)
    try:
        return ask(options, environ)
    except Exception as error:  # importing the class of our errors would add a fifth to the import time
        if not hasattr(error, "exit_code"):
            raise
        return fail(str(error), error.exit_code, as_json=options.json)


def ask(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """
    Raises:
        UsageError: the options or the environment do not say which server, or a TLS file cannot be used.
        Unavailable: there is no connection.
    """
    address = find_address(options.url, environ, protocol=HTTP, with_tls=has_tls_options(options))
    files = pick_files(options, address)
    if address.protocol == GRPC:
        from tgis_cli.clients.grpc_probe import check

        answer = check(address, files, SERVICES[options.probe], options.timeout)
        return print_grpc_answer(options.probe, answer, address, as_json=options.json)
    connection = make_connection(address, files)
    try:
        status, body = fetch(connection, f"/health/{options.probe}", options.timeout)
    except (OSError, UnicodeError, http.client.HTTPException) as error:
        return fail(explain(address, files, error, options.timeout), as_json=options.json)
    return print_answer(options.probe, status, body, address, as_json=options.json)


def has_tls_options(options: argparse.Namespace) -> bool:
    return (options.ca, options.cert, options.key, options.tls_server_name) != (None,) * 4


def pick_files(options: argparse.Namespace, address: Address) -> TlsFiles | None:
    """The TLS files of the command line; ``None`` for plain text.

    Raises:
        UsageError: files are given, but the address means plain text.
    """
    if not address.is_tls and not has_tls_options(options):
        return None
    from tgis_cli.clients.tls_files import TlsFiles, name_flags

    if address.is_tls:
        return TlsFiles(options.ca, options.cert, options.key, options.tls_server_name)
    from tgis_server.errors import UsageError

    raise UsageError(f"{name_flags(options)} is given, but {address} means no TLS: write {address.protocol}s://.")


def explain(address: Address, files: TlsFiles | None, error: Exception, timeout_s: float) -> str:
    """Why there is no answer. The server is tried again only if it has responded at all, to waste no time."""
    from tgis_cli.clients.no_connection import explain_error, explain_no_connection

    if isinstance(error, ssl.SSLError | ConnectionResetError | http.client.HTTPException):
        return explain_no_connection(address, files, timeout_s)
    assert isinstance(error, OSError | UnicodeError), "fetch raises no others"
    return explain_error(address, error, timeout_s)


def fetch(connection: http.client.HTTPConnection, path: str, timeout_s: float) -> tuple[int, bytes]:
    """Return status and body.

    Raises:
        OSError: no connection; TimeoutError: no complete answer in time.
        UnicodeError: the host is not a valid name.
        HTTPException: the answer is not HTTP.
    """

    def get() -> tuple[int, bytes]:
        with contextlib.closing(connection):
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read()

    return within(timeout_s, get)


def within(timeout_s: float, work: Callable[[], tuple[int, bytes]]) -> tuple[int, bytes]:
    """Run the work in a thread, so that the timeout also covers name resolution and a slow body."""
    answers: list[tuple[int, bytes] | Exception] = []

    def run() -> None:
        try:
            answers.append(work())
        except (OSError, UnicodeError, http.client.HTTPException) as error:
            answers.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(timeout_s)
    answer = answers[0] if answers else TimeoutError()
    if isinstance(answer, Exception):
        raise answer
    return answer


class NamedConnection(http.client.HTTPSConnection):
    """Expects a given name in the server's certificate."""

    def __init__(self, host: str, port: int, context: ssl.SSLContext, name: str) -> None:
        super().__init__(host, port, context=context)
        self._tls = context
        self._name = name

    def connect(self) -> None:
        http.client.HTTPConnection.connect(self)
        self.sock = self._tls.wrap_socket(self.sock, server_hostname=self._name)


def make_connection(address: Address, files: TlsFiles | None) -> http.client.HTTPConnection:
    """Make the connection. Without a CA nothing is verified, because a probe sends no secrets.

    Raises:
        UsageError: a file cannot be used.
    """
    if files is None:
        return http.client.HTTPConnection(address.host, address.port)
    context = files.make_context(verify=files.ca is not None)
    return NamedConnection(address.host, address.port, context, files.name or address.host)


def print_answer(probe: str, status: int, body: bytes, address: Address, *, as_json: bool) -> int:
    try:
        facts = json.loads(body)
        why_not = "" if status == http.client.OK else facts["error"]
    except (ValueError, TypeError, KeyError):
        return fail(f"The HTTP server at {address} is not TGIS: it answers with status {status}.", as_json=as_json)
    if as_json:
        print(json.dumps(facts))
    elif not why_not:
        print(ANSWERS[probe])
    return fail(why_not) if why_not else 0


def print_grpc_answer(probe: str, status: str, address: Address, *, as_json: bool) -> int:
    """
    Args:
        status: a status of ``grpc.health.v1``, such as ``SERVING``.
    """
    is_healthy = status == "SERVING"
    if as_json:
        print(json.dumps({"status": status}))
    elif is_healthy:
        print(ANSWERS[probe])
    reason = f"The server at {address} is not {ANSWERS[probe]}: it reports {status}; its HTTP port gives the reason."
    return 0 if is_healthy else fail(reason)


def fail(sentence: str, exit_code: int = 1, *, as_json: bool = False) -> int:
    """
    Args:
        as_json: print the sentence as JSON too, because no other JSON has been printed.
    """
    if as_json:
        from tgis_cli.terminal.exits import print_failure

        print_failure(sentence, exit_code, ("health", "--json"))
    elif sys.stderr.isatty():  # a person
        from tgis_cli.terminal.sentences import print_sentence

        print_sentence(f"tgis: {sentence}", sys.stderr)
    else:  # probes run often, and this needs no import
        # Parts of the sentence come from servers, which must not control the terminal that shows it.
        shown = "".join(char if char.isprintable() else f"\\x{ord(char):02x}" for char in sentence)
        with contextlib.suppress(OSError):  # then only the exit code is left
            print(f"tgis: {shown}", file=sys.stderr, flush=True)
    return exit_code


def make_parser() -> ArgumentParser:
    parser = ArgumentParser("tgis health", f"{DESCRIPTION}\n\n{EPILOG}")
    for flag, settings in OPTIONS.items():
        parser.add_argument(flag, **settings)
    return parser


def read_seconds(text: str) -> float:
    with contextlib.suppress(ValueError):
        if 0 < float(text) <= MAX_TIMEOUT_S:
            return float(text)
    raise argparse.ArgumentTypeError(f"{text} is not a number of seconds above 0, up to {MAX_TIMEOUT_S}")


OPTIONS: dict[str, dict[str, Any]] = {  # for shell completion too
    "--probe": {"choices": tuple(ANSWERS), "default": "ready", "help": "What to check. [default: %(default)s]"},
    "--url": {
        "metavar": "URL",
        "help": "Address of the server; grpc:// and grpcs:// use the gRPC health service. [env: TGIS_URL; default: "
        "PORT, the running server, or http://127.0.0.1:3000]",
    },
    "--timeout": {
        "type": read_seconds,
        "default": 1.0,
        "metavar": "SECONDS",
        "help": "Time limit for the whole check. [default: %(default)g]",
    },
    "--json": {"action": "store_true", "help": "Print the server's whole answer."},
    "--ca": {
        "type": Path,
        "metavar": "FILE",
        "help": "Verify the server's certificate with this CA; without it HTTPS accepts any.",
    },
    "--cert": {"type": Path, "metavar": "FILE", "help": "Client certificate, for a server that requires one."},
    "--key": {"type": Path, "metavar": "FILE", "help": "Key of the client certificate, if it is in another file."},
    "--tls-server-name": {"metavar": "NAME", "help": "Name in the server's certificate, if not that of the URL."},
}
