"""``tgis generate``: complete texts with a running server and show the answers as they are generated."""

from __future__ import annotations

from typing import Annotated

import typer

from tgis_cli.clients.connection import Connection
from tgis_cli.clients.connection_options import with_connection_options
from tgis_cli.clients.generation import MAX_PARALLEL
from tgis_cli.clients.generation import generate as complete
from tgis_cli.clients.parameter_flags import with_parameters
from tgis_cli.clients.parameters import Parameters
from tgis_cli.terminal.exits import leave

app = typer.Typer(add_completion=False)

TEXT_HELP = "What to complete; `-` stands for standard input. Without a text: standard input, or a prompt loop."
FILE_HELP = "Complete each line; a line of a .jsonl file is a JSON object with a text and its own parameters."
MANY = "Several answers"

Text = Annotated[list[str] | None, typer.Argument(metavar="TEXT", help=TEXT_HELP, show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="Print each answer as a JSON object on one line.")]
File = Annotated[str | None, typer.Option(metavar="FILE", help=FILE_HELP, rich_help_panel=MANY)]
Parallel = Annotated[
    int,
    typer.Option(
        min=1, max=MAX_PARALLEL, metavar="N", help="Number of answers generated at once.", rich_help_panel=MANY
    ),
]
NumAnswers = Annotated[
    int,
    typer.Option("-n", min=1, metavar="N", help="Answers to each text, with different seeds.", rich_help_panel=MANY),
]


@app.command()
@with_connection_options
@with_parameters
def generate(
    connection: Connection,
    parameters: Parameters,
    text: Text = None,
    json_: AsJson = False,
    wait: Annotated[bool, typer.Option("--wait", help="Wait until the server is ready.")] = False,
    wait_timeout: Annotated[
        float | None, typer.Option(min=0, metavar="SECONDS", help="Like --wait, but not longer than this.")
    ] = None,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Always print statistics on stderr.")] = False,
    file: File = None,
    parallel: Parallel = 8,
    num_answers: NumAnswers = 1,
) -> None:
    """Complete text with a running server.

    Greedy unless a sampling option is given. Exit codes: 0 done, 1 the server refused or failed, 2 usage, 130 Ctrl-C.
    """
    leave(
        complete(
            connection,
            parameters,
            text=text or (),
            json_=json_,
            wait=wait,
            wait_timeout=wait_timeout,
            verbose=verbose,
            file=file,
            parallel=parallel,
            num_answers=num_answers,
        )
    )
