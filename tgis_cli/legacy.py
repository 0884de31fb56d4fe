"""The executables of the original, for manifests and clients that start them by name.

``text-generation-launcher`` takes the same options as ``tgis launch``, but never falls back to the demo model: a pod
must not become ready on toy text. ``text-generation-server serve`` was one shard; here it starts the whole server. Its
tools are those of ``tgis``, which take the original's options.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from tgis_cli.app import COMMANDS, describe_command, load_command
from tgis_cli.commands.launch import LaunchCommand, run_launch
from tgis_cli.terminal.exits import errors_as_exit_codes
from tgis_cli.terminal.options import with_serve_options
from tgis_server.errors import UsageError
from tgis_server.options import FRAMEWORKS

RENDEZVOUS = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
LAUNCH_NAMES = {"model": "model_name", "engine": "deployment_framework", "uds_path": "shard_uds_path"}
WHOLE_SERVER = "text-generation-server serve starts the whole server, all shards and the front-end: use `tgis launch`."


def launch(flags: Mapping[str, Any], config_file: Path | None) -> None:
    """Serve a model, under the name and with the options of the original's launcher.

    `tgis launch MODEL` is the newer way and takes the same options.
    `tgis migrate FILE` tells what becomes of the settings in a manifest.
    """
    raise SystemExit(run_launch(flags, config_file, needs_model=True))


def make_launcher() -> Any:
    """The command behind ``text-generation-launcher``."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command(cls=LaunchCommand)(with_serve_options(launch, positional_model=None))
    return typer.main.get_command(app)


def launcher() -> None:
    """The console script ``text-generation-launcher``."""
    with errors_as_exit_codes(debug=False):
        sys.exit(make_launcher().main(prog_name="text-generation-launcher", standalone_mode=False))


TOOLS = ("download-weights", "convert-to-safetensors", "convert-to-fast-tokenizer", "convert-to-onnx")


class ServerGroup(TyperGroup):
    """Adds the original's tools, which are commands of ``tgis``, and says of those that are missing what there is."""

    def __init__(self, **attrs: Any) -> None:
        super().__init__(**attrs)
        for name in TOOLS:
            self.add_command(describe_command(name, COMMANDS[name]), name)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args and args[0] not in self.commands:
            raise UsageError(
                f"text-generation-server {args[0]} is not part of this version; {', '.join(('serve', *TOOLS))} are. "
                f"The commands of tgis are {', '.join(COMMANDS)}."
            )
        name, command, rest = super().resolve_command(ctx, args)
        return name, load_command(name) if name in TOOLS else command, rest


server_app = typer.Typer(
    cls=ServerGroup,
    add_completion=False,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    rich_markup_mode="rich",
)


@server_app.callback()
def text_generation_server() -> None:
    """The original's shard server and tools; `tgis` is the newer name of all of them."""


@server_app.command(cls=LaunchCommand)
def serve(
    ctx: typer.Context,
    model: Annotated[str, typer.Argument(help="Directory, or hub id in the local cache.")],
    engine: Annotated[str, typer.Argument(help=f"One of {', '.join(FRAMEWORKS)}.")],
    dtype: Annotated[str | None, typer.Option(help="Number format.")] = None,
    quantize: Annotated[str | None, typer.Option(help="Quantization method.")] = None,
    max_sequence_length: Annotated[str | None, typer.Option(help="Most tokens of input and output.")] = None,
    max_new_tokens: Annotated[str | None, typer.Option(help="Most tokens that a request may ask for.")] = None,
    max_batch_size: Annotated[str | None, typer.Option(help="Most sequences running together.")] = None,
    batch_safety_margin: Annotated[str | None, typer.Option(help="Percent of free GPU memory held back.")] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit.")] = None,
    sharded: Annotated[bool, typer.Option(help="Start WORLD_SIZE shards instead of one.")] = False,
    cuda_process_memory_fraction: Annotated[str | None, typer.Option(help="Share of each GPU.")] = None,
    uds_path: Annotated[str | None, typer.Option(help="The socket of rank r is PATH-r.")] = None,
) -> None:
    """Serve a model: all its shards and the front-end, on the ports that GRPC_PORT and PORT name."""
    raise SystemExit(run_launch(to_launch_flags(ctx.params, os.environ), None, warnings=[WHOLE_SERVER]))


def to_launch_flags(params: Mapping[str, Any], environ: Mapping[str, str]) -> dict[str, Any]:
    """What ``serve`` was given, by the names of the launcher's options.

    Raises:
        UsageError: as :func:`count_shards`.
    """
    flags = {LAUNCH_NAMES.get(name, name): value for name, value in params.items() if name != "sharded"}
    return flags | {"num_shard": count_shards(environ) if params["sharded"] else "1"}


def count_shards(environ: Mapping[str, str]) -> str:
    """How many shards a sharded server has.

    Raises:
        UsageError: the environment does not say, or this is not the first of the shards.
    """
    for name in RENDEZVOUS:
        if not environ.get(name, "").strip():
            raise UsageError(f"{name} must be set when sharded is True")
    rank, num_shard = environ["RANK"].strip(), environ["WORLD_SIZE"].strip()
    if rank != "0":
        raise UsageError(
            f"RANK is {rank}, but rank 0 starts all {num_shard} shards: start text-generation-server once."
        )
    return num_shard


def make_server() -> Any:
    """The command behind ``text-generation-server``."""
    return typer.main.get_command(server_app)


def server() -> None:
    """The console script ``text-generation-server``."""
    with errors_as_exit_codes(debug=False):
        sys.exit(make_server().main(prog_name="text-generation-server", standalone_mode=False))
