"""``tgis bench``: measure a server. Its commands are in the ``bench_*`` modules, each imported when it runs."""

from __future__ import annotations

import importlib
import signal
from typing import Any

import typer

from tgis_cli.terminal.command import Group, dress
from tgis_cli.terminal.command_table import make_stand_in
from tgis_cli.terminal.exits import EXIT_BROKEN_PIPE, EXIT_UNEXPECTED
from tgis_server.errors import GroupFailed, ModelError, NotEnoughDevices, UsageError

COMMANDS = {
    "load": "Send requests to a server, and measure what its users would experience.",
    "engine": "Measure the engine alone, without gRPC.",
    "start": "Measure how long a server takes to start.",
    "compare": "Compare two results; exit with 1 if the newer one is worse.",
    "ab": "Compare two configurations in alternating rounds.",
}
# With which the commands end; docs/benchmarking.md has this table.
EXIT_CODES = {
    0: "done; for `compare`, no figure is worse",
    EXIT_UNEXPECTED: "no server, a server that went away, no completed request, or figures that cannot be trusted; for "
    "`compare`, a regression; also an unexpected error, which is a bug",
    UsageError.exit_code: "wrong options, a file that cannot be read or written, or lengths above those of the model",
    ModelError.exit_code: "the model that the command should start is missing, damaged or not served",
    NotEnoughDevices.exit_code: "too few GPUs for that model, or too little memory or disk space",
    GroupFailed.exit_code: "a process failed in the server that the command started, in the engine or, before any "
    "level was measured, in the load generator",
    128 + signal.SIGHUP: "SIGHUP, because the terminal was closed: like Ctrl-C",
    128 + signal.SIGINT: "Ctrl-C; once the measurement has begun, with what was measured until then",
    EXIT_BROKEN_PIPE: "nobody reads stdout any more",
    128 + signal.SIGTERM: "SIGTERM: like Ctrl-C",
}
DEFAULT = "load"
HELP = ("-h", "--help")


class BenchGroup(Group):
    """Runs ``load`` if no command is named."""

    def __init__(self, **attrs: Any) -> None:
        super().__init__(**attrs)
        for name, summary in COMMANDS.items():
            self.add_command(make_stand_in(name, summary), name)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not args or (args[0] not in self.commands and args[0] not in HELP and args[0].startswith("-")):
            args = [DEFAULT, *args]
        return super().parse_args(ctx, args)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, _, rest = super().resolve_command(ctx, args)
        module = importlib.import_module(f"tgis_cli.commands.bench_{name}")
        dress(module.app)
        command = typer.main.get_command(module.app)
        command.name = name
        return name, command, rest


app = typer.Typer(add_completion=False)


@app.callback(cls=BenchGroup)
def bench() -> None:
    """Measure a server as its users experience it. Without a command: `tgis bench load`."""
