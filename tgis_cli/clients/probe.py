"""``tgis health``: query a server's health over HTTP.

Container platforms run it every few seconds, so it imports as little as possible: no part of the server, and not the
framework of the other commands.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import ssl
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import urlsplit

TYPE_CHECKING = False  # importing typing would add a tenth to the imports
if TYPE_CHECKING:
    from typing import Any, NoReturn

ANSWERS = {"ready": "ready", "live": "live", "startup": "started"}  # by probe: the answer of a healthy server
MAX_TIMEOUT_S = 3600
DESCRIPTION = "Check the health of a running server."
EPILOG = "Exit code 0: healthy; 1: unhealthy, or no server; 2: wrong options."


def main(argv: Sequence[str], environ: Mapping[str, str]) -> int:
    """Query once and print the answer; return the exit code."""
    parser = make_parser()
    options, unknown = parser.parse_known_args(argv)
    if unknown:
        parser.error(f"No such option: {unknown[0]}{suggest(unknown[0])}")
    address = options.url or default_url(environ)
    try:
        connection = make_connection(address, options)
    except ValueError:
        parser.error(f"{address!r} is not http://HOST:PORT or https://HOST:PORT: see --url and the variable PORT")
    except OSError as error:
        parser.error(f"the files of --ca, --cert and --key cannot be used: {error}")
    try:
        status, body = fetch(connection, f"/health/{options.probe}", options.timeout)
    except TimeoutError:
        return fail(f"No server at {address}: no answer within {options.timeout:g} s.")
    except (OSError, UnicodeError) as error:
        return fail(f"No server at {address}: {getattr(error, 'strerror', None) or error}.")
    except http.client.HTTPException:
        return fail(f"The process at {address} does not speak HTTP.")
    return print_answer(options.probe, status, body, address, as_json=options.json)


def fetch(connection: http.client.HTTPConnection, path: str, timeout_s: float) -> tuple[int, bytes]:
    """Return status and body. A thread does it, so that the timeout also covers name resolution and a slow body.

    Raises:
        OSError: no connection; TimeoutError: no complete answer in time.
        UnicodeError: the host is not a valid name.
        HTTPException: the answer is not HTTP.
    """
    answers: list[tuple[int, bytes] | Exception] = []

    def get() -> None:
        with contextlib.closing(connection):
            try:
                connection.request("GET", path)
                response = connection.getresponse()
                answers.append((response.status, response.read()))
            except (OSError, UnicodeError, http.client.HTTPException) as error:
                answers.append(error)

    thread = threading.Thread(target=get, daemon=True)
    thread.start()
    thread.join(timeout_s)
    answer = answers[0] if answers else TimeoutError()
    if isinstance(answer, Exception):
        raise answer
    return answer


def make_connection(address: str, options: argparse.Namespace) -> http.client.HTTPConnection:
    """
    Raises:
        ValueError: the address is malformed.
        OSError: a file of ``options`` cannot be used.
    """
    url = urlsplit(address if "://" in address else f"http://{address}")
    if url.scheme not in ("http", "https") or not url.hostname or not url.port:
        raise ValueError(address)
    if url.scheme == "http":
        return http.client.HTTPConnection(url.hostname, url.port)
    context = make_tls_context(options.ca, options.cert, options.key)
    return http.client.HTTPSConnection(url.hostname, url.port, context=context)


def print_answer(probe: str, status: int, body: bytes, address: str, *, as_json: bool) -> int:
    try:
        facts = json.loads(body)
        why_not = "" if status == http.client.OK else facts["error"]
    except (ValueError, TypeError, KeyError):
        return fail(f"The HTTP server at {address} is not TGIS: it answers with status {status}.")
    if as_json:
        print(json.dumps(facts))
    elif not why_not:
        print(ANSWERS[probe])
    return fail(why_not) if why_not else 0


def fail(sentence: str) -> int:
    print(f"tgis: {sentence}", file=sys.stderr)
    return 1


class Parser(argparse.ArgumentParser):
    """Prints errors in one line, like the other commands."""

    def error(self, message: str) -> NoReturn:
        fail(message if message.endswith("?") else f"{message}; `tgis health --help` shows what is accepted.")
        raise SystemExit(2)


def make_parser() -> Parser:
    parser = Parser("tgis health", description=DESCRIPTION, epilog=EPILOG, allow_abbrev=False)
    for flag, settings in OPTIONS.items():
        parser.add_argument(flag, **settings)
    return parser


def suggest(unknown: str) -> str:
    import difflib

    close = difflib.get_close_matches(unknown, OPTIONS, n=1)
    return f"; did you mean {close[0]}?" if close else ""


def read_seconds(text: str) -> float:
    with contextlib.suppress(ValueError):
        if 0 < float(text) <= MAX_TIMEOUT_S:
            return float(text)
    raise argparse.ArgumentTypeError(f"{text} is not a number of seconds above 0, up to {MAX_TIMEOUT_S}")


OPTIONS: dict[str, dict[str, Any]] = {  # for shell completion too
    "--probe": {"choices": tuple(ANSWERS), "default": "ready", "help": "what to check (default: %(default)s)"},
    "--url": {
        "help": "http://HOST:PORT or https://HOST:PORT (default: this machine at the port in the environment variable "
        "PORT, or 3000; https if HTTP_TLS is server or mutual)",
    },
    "--timeout": {
        "type": read_seconds,
        "default": 1.0,
        "metavar": "SECONDS",
        "help": "time limit for the whole check (default: %(default)g)",
    },
    "--json": {"action": "store_true", "help": "print the server's whole answer"},
    "--ca": {"type": Path, "metavar": "FILE", "help": "verify the server's certificate; without it any is accepted"},
    "--cert": {"type": Path, "metavar": "FILE", "help": "client certificate, for --http-tls mutual"},
    "--key": {"type": Path, "metavar": "FILE", "help": "key of the client certificate"},
}


def default_url(environ: Mapping[str, str]) -> str:
    """The address at which a launcher with the same environment serves."""
    scheme = "https" if environ.get("HTTP_TLS", "").strip() in ("server", "mutual") else "http"
    return f"{scheme}://127.0.0.1:{environ.get('PORT', '').strip() or 3000}"


def make_tls_context(ca: Path | None, cert: Path | None, key: Path | None) -> ssl.SSLContext:
    """Without a CA nothing is verified: a probe sends no secrets."""
    context = ssl.create_default_context(cafile=ca)
    if ca is None:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if cert:
        context.load_cert_chain(cert, key)
    return context
