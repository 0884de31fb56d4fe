"""Where a plan gets its model from: a directory, the local cache, or the hub, of which only headers are read."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tgis_cli.models import find_model_dir, get_cache_dir, is_in_cache
from tgis_cli.resolve import DEMO_MODEL_DIR
from tgis_server.config import ServeConfig
from tgis_server.engines.native.checkpoint import find_files
from tgis_server.errors import ModelError

COPIED = ("config.json", "generation_config.json")
PYTORCH = ("*.bin", "*.pt")


@dataclass(frozen=True, slots=True)
class Source:
    """A directory that can be inspected like a model's, and what it stands for."""

    model: str  # as the user wrote it
    model_dir: Path
    where: str  # in words
    num_bytes: int  # of the model's files
    missing_bytes: int = 0  # of these, still to be downloaded
    cache_dir: Path | None = None  # where they would go; None: the model is here
    must_convert: bool = False  # the weights are not safetensors
    is_stand_in: bool = False  # model_dir holds no data


@contextmanager
def open_model(config: ServeConfig, environ: Mapping[str, str], token: str | None) -> Iterator[Source]:
    """Find a model as a start does, or else ask the hub; nothing stays on the disk.

    Raises:
        UsageError, ModelError, HubError: it is in no place, or cannot be asked for.
    """
    name = config.model_name
    with tempfile.TemporaryDirectory(prefix="tgis-plan-") as made:
        directory = Path(made)
        if name is None:
            source = Source("demo", DEMO_MODEL_DIR, "the demo model that comes with TGIS", sum_files(DEMO_MODEL_DIR))
        else:
            cache_dir = get_cache_dir(environ)
            source = find_local(name, config, cache_dir, directory) or ask_hub(
                name, config, cache_dir, directory, token
            )
        yield source


def find_local(name: str, config: ServeConfig, cache_dir: Path, directory: Path) -> Source | None:
    """What is here already, if its weights are."""
    try:
        model_dir = find_model_dir(name, config.revision, cache_dir)
    except ModelError:
        if name.startswith(("/", ".", "~")) or Path(name).is_dir():
            raise
        return None
    is_cached = is_in_cache(name, model_dir, cache_dir)
    where = f"the cache {cache_dir}" if is_cached else "a directory"
    try:
        find_files(model_dir)
    except ModelError:
        if not any(next(model_dir.glob(pattern), None) for pattern in PYTORCH):
            if is_cached:
                return None  # a part of a download: the hub knows the rest
            raise
        for copied in COPIED:
            with suppress(FileNotFoundError):
                shutil.copyfile(model_dir / copied, directory / copied)
        lay_out_converted(directory)
        return Source(name, directory, where, sum_files(model_dir), must_convert=True, is_stand_in=True)
    return Source(name, model_dir, where, sum_files(model_dir))


def ask_hub(name: str, config: ServeConfig, cache_dir: Path, directory: Path, token: str | None) -> Source:
    from tgis_cli.models.download import Transfers
    from tgis_cli.models.get_model import Order
    from tgis_cli.models.hub import get_endpoint
    from tgis_cli.models.remote_headers import fetch_headers

    order = Order(name, config.revision or "main", transfers=Transfers(token))
    remote = fetch_headers(order, cache_dir, directory, lambda sentence: print(sentence, file=sys.stderr))
    if not remote.has_safetensors:
        lay_out_converted(directory)
    return Source(
        name,
        directory,
        f"{get_endpoint()}, commit {remote.commit[:8]}, not downloaded",
        remote.num_bytes,
        remote.missing_bytes,
        cache_dir,
        must_convert=not remote.has_safetensors,
        is_stand_in=True,
    )


def lay_out_converted(directory: Path) -> None:
    """Weights of which nothing but config.json tells; nothing where no engine knows the model."""
    from tgis_cli.models.remote_headers import write_converted_header

    with suppress(ModelError):
        write_converted_header(directory)


def sum_files(model_dir: Path) -> int:
    return sum(file.stat().st_size for file in model_dir.iterdir() if file.is_file())
