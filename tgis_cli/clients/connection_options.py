"""The options of every command that talks to a server, declared once and passed as one value."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from tgis_cli.clients.address import GRPC, HTTP
from tgis_cli.clients.connection import Connection
from tgis_cli.terminal.callbacks import make_callback

PANEL = "Connection"
URL_HELP = {
    GRPC: "Address of the server; grpcs:// means TLS. [env: TGIS_URL; default: GRPC_PORT, the running server, or "
    "127.0.0.1:8033]",
    HTTP: "HTTP address of the server; https:// means TLS. [env: TGIS_URL; default: PORT, the running server, or "
    "127.0.0.1:3000]",
}


def option(*names: str, metavar: str, text: str) -> Any:
    return typer.Option(*names, metavar=metavar, help=text, rich_help_panel=PANEL, show_default=False)


OPTIONS = {
    "ca": Annotated[
        Path | None,
        option("--ca", metavar="FILE", text="Use TLS; verify the server with this CA or certificate, PEM."),
    ],
    "cert": Annotated[
        Path | None,
        option("--cert", metavar="FILE", text="Use TLS; client certificate for a server that requires one."),
    ],
    "key": Annotated[
        Path | None, option("--key", metavar="FILE", text="Key of the client certificate, if it is in another file.")
    ],
    "tls_server_name": Annotated[
        str | None,
        option("--tls-server-name", metavar="NAME", text="Name in the server's certificate, if not that of the URL."),
    ],
}


def with_connection_options(body: Callable[..., None], *, protocol: str = GRPC) -> Callable[..., None]:
    """Make a Typer callback with the body's own parameters and these options.

    Args:
        body: called as ``body(connection, ...)``: all parameters but the first become options of the command.
        protocol: the address's, ``GRPC`` or ``HTTP``.
    """
    own = list(inspect.signature(body, eval_str=True).parameters.values())[1:]
    url = Annotated[str | None, option("--url", metavar="HOST:PORT", text=URL_HELP[protocol])]
    options = {"url": url, **OPTIONS}
    shared = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
        for name, annotation in options.items()
    ]

    def command(**values: Any) -> None:
        connection = Connection(**{name: values.pop(name) for name in options})
        body(connection, **values)

    return make_callback(command, body, [*own, *shared])
