"""Finds the model of a plan: in a directory, in the cache, or on the hub, from which only headers are read."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tgis_cli.model_files import DEMO, DEMO_MODEL_DIR, find_model, get_cache_dir, is_in_cache, suggest_demo
from tgis_cli.model_files.convert.to_safetensors import find_sources
from tgis_cli.terminal.sentences import print_sentence
from tgis_server.engines.catalogue import find_engine
from tgis_server.errors import HubError, ModelError, TgisError, UsageError
from tgis_server.model_files import find_weights
from tgis_server.options import ServeConfig

COPIED = ("config.json", "generation_config.json")


@dataclass(frozen=True, slots=True)
class ModelSource:
    """A directory to inspect in place of the model, and facts about the real files."""

    model: str  # as the user wrote it
    model_dir: Path
    where: str  # for people
    num_bytes: int  # of the model's files
    missing_bytes: int = 0  # still to be downloaded
    target_dir: Path | None = None  # where files would be written; None: there is nothing to write
    convert_bytes: int = 0  # size of the safetensors that a conversion still has to make
    is_stand_in: bool = False  # model_dir is a temporary directory without data
    is_on_hub: bool = False


@contextmanager
def open_model(config: ServeConfig, environ: Mapping[str, str], token: str | None) -> Iterator[ModelSource]:
    """Find a model as at startup, or else on the hub. Temporary files are removed afterwards.

    Raises:
        UsageError, ModelError, HubError: the model is not found or cannot be used, the hub cannot be reached, or no
            temporary directory can be created.
    """
    name = config.model_name
    with ExitStack() as stack:

        def make_directory() -> Path:
            try:
                return Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tgis-plan-")))
            except OSError as error:
                raise UsageError(
                    f"No temporary directory can be created for the headers of {name} ({error.strerror}): name a "
                    "writable directory with TMPDIR."
                ) from error

        if name is None:
            yield describe_demo()
            return
        cache_dir = get_cache_dir(environ)
        source = find_local(name, config, cache_dir, make_directory)
        if source is None:
            try:
                source = ask_hub(name, config, cache_dir, make_directory(), token)
            except TgisError as error:
                searched = (
                    f"There is no directory {name}, and the cache {cache_dir} does not have all files of a model of "
                    "that name. "
                )
                start = searched if isinstance(error, HubError) else ""
                raise type(error)(f"{start}{error}{suggest_demo(name)}") from error
        yield source


def find_local(
    name: str, config: ServeConfig, cache_dir: Path, make_directory: Callable[[], Path]
) -> ModelSource | None:
    """The local model; ``None`` if it has to be downloaded."""
    try:
        model_dir = find_model(name, config.revision, cache_dir)
    except ModelError:
        if name.startswith(("/", ".", "~")) or Path(name).is_dir():
            raise
        return None
    if name == DEMO and model_dir == DEMO_MODEL_DIR:
        return describe_demo()
    is_cached = is_in_cache(name, model_dir, cache_dir)
    where = f"the cache {cache_dir}" if is_cached else "a directory"
    try:
        find_weights(model_dir)
    except ModelError:
        if not has_engine(model_dir):  # as at startup, its files are not mentioned
            return ModelSource(name, model_dir, where, sum_files(model_dir))
        try:
            sources = find_sources(model_dir)
        except ModelError:  # some are missing
            if not is_cached:
                raise
            sources = {}
        if not sources:
            if is_cached:
                return None  # a partial download, so the hub is needed
            raise
        directory = make_directory()
        for copied in COPIED:
            with suppress(FileNotFoundError):
                shutil.copyfile(model_dir / copied, directory / copied)
        return ModelSource(
            name,
            directory,
            where,
            sum_files(model_dir),
            target_dir=model_dir,
            convert_bytes=lay_out_converted(sources, directory),
            is_stand_in=True,
        )
    return ModelSource(name, model_dir, where, sum_files(model_dir))


def describe_demo() -> ModelSource:
    return ModelSource(DEMO, DEMO_MODEL_DIR, "the demo model that comes with TGIS", sum_files(DEMO_MODEL_DIR))


def has_engine(model_dir: Path) -> bool:
    """Whether an engine serves the model, by its config.json."""
    try:
        find_engine(model_dir)
    except ModelError:
        return False
    return True


def lay_out_converted(sources: Mapping[Path, Path], directory: Path) -> int:
    """Lay out the headers that a conversion of PyTorch weights would produce.

    Returns:
        The size of the files that are not converted yet.

    Raises:
        ModelError: the weights cannot be converted.
    """
    from tgis_cli.model_files.convert.to_safetensors import find_index_to_make, join_names, read_content, write_index
    from tgis_cli.model_files.download.remote_headers import write_content_with_hole
    from tgis_cli.model_files.whole_weights import is_whole

    contents = {}
    for target, source in sources.items():
        contents[directory / target.name] = read_content(source, source.parent, as_json=False)
    for target, content in contents.items():
        write_content_with_hole(target, content)
    if index := find_index_to_make(next(iter(sources)).parent, sources):
        write_index(directory / index.name, join_names(contents, contents))
    return sum(contents[directory / target.name].num_bytes for target in sources if not is_whole(target))


def ask_hub(name: str, config: ServeConfig, cache_dir: Path, directory: Path, token: str | None) -> ModelSource:
    from tgis_cli.model_files.download.hub import get_endpoint
    from tgis_cli.model_files.download.hub_token import find_token
    from tgis_cli.model_files.download.remote_headers import fetch_headers, write_converted_header
    from tgis_cli.model_files.download.snapshot import Order
    from tgis_cli.model_files.download.transfers import TransferOptions

    def tell(sentence: str) -> None:
        print_sentence(sentence, sys.stderr)

    order = Order(name, config.revision or "main", transfers=TransferOptions(find_token(token, os.environ, tell)))
    chosen = fetch_headers(order, cache_dir, directory, tell)
    if chosen.selection.pytorch_bytes:
        with suppress(ModelError):  # no engine supports the model
            write_converted_header(directory, chosen.selection.pytorch_bytes)
    return ModelSource(
        name,
        directory,
        f"{get_endpoint()}, commit {chosen.selection.listing.commit[:8]}, not downloaded",
        chosen.selection.num_bytes,
        chosen.missing.num_bytes,
        cache_dir,
        convert_bytes=chosen.selection.pytorch_bytes,
        is_stand_in=True,
        is_on_hub=True,
    )


def sum_files(model_dir: Path) -> int:
    return sum(file.stat().st_size for file in model_dir.iterdir() if file.is_file())
