"""The command lines of the original's executables, ``text-generation-launcher`` and ``text-generation-server``.

``tgis_cli.legacy`` runs them; ``tgis migrate`` only uses them as parsers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from tgis_cli.terminal.command import Group
from tgis_cli.terminal.command_table import COMMANDS, load_command, make_stand_in
from tgis_cli.terminal.options import Body, with_serve_options
from tgis_server.errors import UsageError
from tgis_server.options import FRAMEWORKS

RENDEZVOUS = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
LAUNCH_NAMES = {"model": "model_name", "engine": "deployment_framework", "uds_path": "shard_uds_path"}
TOOLS = ("download-weights", "convert-to-safetensors", "convert-to-fast-tokenizer", "convert-to-onnx")

Serve = Callable[[Mapping[str, Any]], None]  # called with the parameters of ``text-generation-server serve``


def parse_only(*_: Any) -> None:
    """The body of a command that is only parsed."""


def make_launcher(launch: Body = parse_only, cls: type[TyperCommand] = TyperCommand) -> Any:
    """The command ``text-generation-launcher``; its help is the docstring of ``launch``."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command(cls=cls)(with_serve_options(launch, positional_model=None))
    return typer.main.get_command(app)


class ServerGroup(Group):
    """Adds the original's tools, which are commands of ``tgis``; names the existing ones if a missing one is called."""

    def __init__(self, **attrs: Any) -> None:
        super().__init__(**attrs)
        for name in TOOLS:
            self.add_command(make_stand_in(name, COMMANDS[name]), name)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args and args[0] not in self.commands:
            raise UsageError(
                f"text-generation-server {args[0]} is not part of this version, which has "
                f"{', '.join(('serve', *TOOLS))}. The commands of tgis are {', '.join(COMMANDS)}."
            )
        name, command, rest = super().resolve_command(ctx, args)
        return name, load_command(name) if name in TOOLS else command, rest


def make_server(start: Serve = parse_only, cls: type[TyperCommand] = TyperCommand) -> Any:
    """The command ``text-generation-server``."""
    app = typer.Typer(
        cls=ServerGroup,
        add_completion=False,
        pretty_exceptions_enable=False,
        no_args_is_help=True,
    )

    @app.callback()
    def text_generation_server() -> None:
        """The original's shard server and tools; `tgis` is the newer command for all of them."""

    @app.command(cls=cls)
    def serve(
        ctx: typer.Context,
        model: Annotated[str, typer.Argument(help="Directory, or hub id in the local cache.")],
        engine: Annotated[str, typer.Argument(help=f"One of {', '.join(FRAMEWORKS)}.")],
        dtype: Annotated[str | None, typer.Option(help="Number format.")] = None,
        quantize: Annotated[str | None, typer.Option(help="Quantization method.")] = None,
        max_sequence_length: Annotated[str | None, typer.Option(help="Maximum tokens of input and output.")] = None,
        max_new_tokens: Annotated[str | None, typer.Option(help="Maximum tokens that a request may ask for.")] = None,
        max_batch_size: Annotated[str | None, typer.Option(help="Maximum sequences running together.")] = None,
        batch_safety_margin: Annotated[
            str | None, typer.Option(help="Percentage of free GPU memory to hold back.")
        ] = None,
        revision: Annotated[str | None, typer.Option(help="Branch, tag or commit.")] = None,
        sharded: Annotated[bool, typer.Option(help="Start WORLD_SIZE shards instead of one.")] = False,
        cuda_process_memory_fraction: Annotated[str | None, typer.Option(help="Share of each GPU.")] = None,
        uds_path: Annotated[str | None, typer.Option(help="The socket of rank r is PATH-r.")] = None,
    ) -> None:
        """Serve a model: all its shards and the front-end, on the ports in GRPC_PORT and PORT."""
        start(ctx.params)

    return typer.main.get_command(app)


def to_launch_flags(params: Mapping[str, Any], environ: Mapping[str, str]) -> dict[str, Any]:
    """The parameters of ``serve`` as flags of the launcher.

    Raises:
        UsageError: see :func:`count_shards`.
    """
    flags = {LAUNCH_NAMES.get(name, name): value for name, value in params.items() if name != "sharded"}
    return flags | {"num_shard": count_shards(environ) if params["sharded"] else "1"}


def count_shards(environ: Mapping[str, str]) -> str:
    """The number of shards of a sharded server.

    Raises:
        UsageError: a variable is missing, or this is not rank 0.
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
