"""PyTorch weights of a model directory to safetensors, beside them.

::

    pytorch_model-00001-of-00002.bin ─► .model-00001-of-00002.safetensors.incomplete ─► model-00001-of-00002.safetensors
    ...                                        written, compared with its source, named
    pytorch_model.bin.index.json     ─► model.safetensors.index.json                     last: it makes them a model

A run that is killed leaves whole files or hidden ones; the next run keeps the former, removes the latter and goes on.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tgis_cli.models.aliases import drop_aliases, rank_names
from tgis_cli.models.disk import FULL, check_disk, explain_full_disk
from tgis_cli.models.locks import lock
from tgis_cli.models.safetensors_file import Content, find_difference, write_content
from tgis_cli.models.selection import BIN_INDEX, SAFETENSORS_INDEX, SINGLE_SAFETENSORS, has_whole_safetensors
from tgis_cli.models.torch_file import read_torch_file
from tgis_cli.progress import Progress, show_progress, tell
from tgis_cli.resources import count
from tgis_server.errors import ModelError, NotEnoughDevices, UsageError
from tgis_server.sizes import format_bytes

# Of a training run, or no weights at all.
SKIPPED_WORDS = ("arguments", "args", "training", "optimizer", "scheduler", "index")
ENDINGS = (".bin", ".pt")
INCOMPLETE = ".incomplete"


@dataclass(frozen=True, slots=True)
class Conversion:
    """What has been done."""

    converted: tuple[str, ...]  # names of new files
    kept: tuple[str, ...]  # of an earlier run
    num_bytes: int  # of new files


@dataclass(frozen=True, slots=True)
class Source:
    """A file to convert, and the one that it becomes."""

    path: Path
    target: Path


def convert_to_safetensors(model_dir: Path, *, as_json: bool) -> Conversion:
    """Make safetensors of all PyTorch weights of a directory; what is there already stays.

    Raises:
        ModelError: a file is damaged or missing, or holds what safetensors cannot, or code.
        UsageError: the directory cannot be written.
        NotEnoughDevices: the disk has no room.
    """

    def tell_waiting() -> None:
        tell(f"another process works on {model_dir}: waiting for it", as_json=as_json)

    try:
        with lock(model_dir, tell_waiting) as is_alone:
            if is_alone:
                remove_leftovers(model_dir)
            return convert_locked(model_dir, as_json=as_json)
    except OSError as error:
        if error.errno in FULL:
            raise NotEnoughDevices(explain_full_disk(error, model_dir)) from error
        if str(error.filename).endswith(ENDINGS):
            raise ModelError(
                f"{error.filename} cannot be read ({error.strerror}): check its owner and mode."
            ) from error
        raise UsageError(
            f"{model_dir} cannot be written ({error.strerror}): converted files go beside their sources, so make it "
            "writable, or copy the model to where it is."
        ) from error


def needs_conversion(model_dir: Path) -> bool:
    """Whether there are PyTorch weights, and no others or only a part of what they become."""
    if has_whole_safetensors(model_dir) or not any(path.suffix in ENDINGS for path in model_dir.iterdir()):
        return False
    sources = find_sources(model_dir)
    present = {path.name for path in model_dir.glob("*.safetensors")}
    return bool(sources) and present <= {source.target.name for source in sources}


def convert_locked(model_dir: Path, *, as_json: bool) -> Conversion:
    sources = find_sources(model_dir)
    kept = tuple(source.target.name for source in sources if is_whole(source.target))
    missing = [source for source in sources if source.target.name not in kept]
    index = find_index_to_make(model_dir, sources)
    if not sources:
        tell(f"{model_dir} has no .bin or .pt files: there is nothing to convert", as_json=as_json)
    elif not missing and index is None:
        tell(f"{', '.join(kept[:3])}{' ...' if len(kept) > 3 else ''}: converted already", as_json=as_json)
    if not missing and index is None:
        return Conversion((), kept, 0)
    # Whatever can be found wrong is found before anything is written.
    check_writable(model_dir)
    contents = {source.target: read_content(source, model_dir, as_json=as_json) for source in missing}
    weight_map = join_names(sources, contents) if index is not None else {}
    num_bytes = sum(content.num_bytes for content in contents.values())
    check_disk(model_dir, num_bytes, "The conversion", "move the model to a larger disk")
    if missing:
        sentence = f"converting {count(len(missing), 'file')}: {format_bytes(num_bytes)}"
        tell(sentence, "plan", as_json=as_json, num_bytes=num_bytes)
    with show_progress("converting", num_bytes, as_json=as_json) as progress:
        for target, content in contents.items():
            write_target(target, content, progress)
    if index is not None:
        write_index(index, weight_map)
    return Conversion(tuple(target.name for target in contents), kept, num_bytes)


def remove_leftovers(model_dir: Path) -> None:
    """Of runs that were killed."""
    for leftover in model_dir.glob(f".*.safetensors*{INCOMPLETE}"):
        leftover.unlink(missing_ok=True)


def find_sources(model_dir: Path) -> list[Source]:
    """The files to convert: those of the index if there is one, else all that may be weights.

    Raises:
        ModelError: there are several indexes, or the index names what is not there.
    """
    indexes = sorted(model_dir.glob("*.bin.index.json"))
    if len(indexes) > 1:
        raise ModelError(
            f"{model_dir} has several indexes ({', '.join(path.name for path in indexes)}): leave only that of the "
            "weights to convert."
        )
    if indexes:
        names = sorted(set(read_weight_map(indexes[0]).values()))
        if lost := [name for name in names if Path(name).name != name or not (model_dir / name).is_file()]:
            raise ModelError(
                f"{indexes[0]} names {lost[0]}, which is not there ({len(lost)} of {len(names)} files are missing): "
                "download the model again."
            )
        paths = [model_dir / name for name in names]
    else:
        paths = [
            path
            for path in sorted(model_dir.iterdir())
            if path.suffix in ENDINGS and not path.is_dir() and not any(word in path.name for word in SKIPPED_WORDS)
        ]
        if gone := [path for path in paths if not path.exists()]:
            raise ModelError(f"{gone[0]} is a link to a file that is gone: download the model again.")
    sources: dict[Path, Source] = {}
    for path in sorted(paths, key=lambda path: ENDINGS.index(path.suffix)):  # of two with one target the .bin
        target = model_dir / f"{path.stem.removeprefix('pytorch_')}.safetensors"
        sources.setdefault(target, Source(path, target))
    return list(sources.values())


def read_weight_map(index: Path) -> dict[str, str]:
    try:
        weight_map = json.loads(index.read_bytes())["weight_map"]
        return {str(name): str(file) for name, file in weight_map.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{index} is no index of weights: download the model again.") from error


def find_index_to_make(model_dir: Path, sources: list[Source]) -> Path | None:
    """The index that turns several files into a model, if it is needed and not there."""
    index = model_dir / SAFETENSORS_INDEX
    is_one_model = len(sources) == 1 or any(source.target.name == SINGLE_SAFETENSORS for source in sources)
    has_index = (model_dir / BIN_INDEX).exists() or any(model_dir.glob("*.bin.index.json"))
    return None if not sources or (is_one_model and not has_index) or is_complete(index) else index


def is_complete(index: Path) -> bool:
    """Whether an index is there, and all that it names."""
    with suppress(ModelError, OSError):
        return all((index.parent / name).exists() for name in read_weight_map(index).values())
    return False


def is_whole(target: Path) -> bool:
    """Whether a target is there. It got its name when it was whole; a file of other origin may not be."""
    from tgis_server.engines.native.checkpoint import read_header

    with suppress(ModelError):
        return target.exists() and bool(read_header(target))
    return False


def check_writable(model_dir: Path) -> None:
    """Raises OSError where nothing can be made, before minutes of work."""
    probe = name_temporary(model_dir / SINGLE_SAFETENSORS)
    probe.touch()
    probe.unlink()


def read_content(source: Source, model_dir: Path, *, as_json: bool) -> Content:
    """What a target is to hold."""
    tensors, left_out = read_torch_file(source.path)
    for name in left_out:
        tell(f"{source.path.name}: {name} is no tensor and is left out", "left_out", as_json=as_json, name=name)
    kept, removed = drop_aliases(source.path, tensors, lambda: rank_names(model_dir))
    return Content(source.path, kept, {"format": "pt", **removed})


def join_names(sources: Iterable[Source], contents: Mapping[Path, Content]) -> dict[str, str]:
    """The file of every tensor.

    Raises:
        ModelError: two files have a tensor of the same name.
    """
    from tgis_server.engines.native.checkpoint import read_header

    weight_map: dict[str, str] = {}
    for source in sources:
        content = contents.get(source.target)
        for name in content.tensors if content else read_header(source.target):
            if name in weight_map:
                raise ModelError(
                    f"{name} is in {weight_map[name]} and in {source.target.name}: the .bin files are not those of one "
                    "model; leave only those that are."
                )
            weight_map[name] = source.target.name
    return weight_map


def write_target(target: Path, content: Content, progress: Progress) -> None:
    temporary = name_temporary(target)
    try:
        write_content(temporary, content, progress.advance)
        with ThreadPoolExecutor(1) as pool:  # the disk is slow, to compare takes the processor: both at once
            is_on_disk = pool.submit(sync, temporary)
            name = find_difference(temporary, content, lambda count: progress.tick())
            is_on_disk.result()
        if name:
            raise ModelError(f"The output tensors do not match for key {name}: check the disk of {target.parent}.")
        rename(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
    progress.say(f"{target.name}: {format_bytes(content.num_bytes)}", "file", name=target.name, bytes=content.num_bytes)


def write_index(index: Path, weight_map: Mapping[str, str]) -> None:
    total = 0
    for name in set(weight_map.values()):
        with (index.parent / name).open("rb") as file:
            total += os.fstat(file.fileno()).st_size - 8 - int.from_bytes(file.read(8), "little")
    text = json.dumps({"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}, indent=2)
    temporary = name_temporary(index)
    try:
        temporary.write_text(text + "\n")
        sync(temporary)
        rename(temporary, index)
    finally:
        temporary.unlink(missing_ok=True)


def name_temporary(target: Path) -> Path:
    """A name that nobody else uses: not every file system has locks."""
    return target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}{INCOMPLETE}")


def rename(temporary: Path, target: Path) -> None:
    """For good: also if the machine loses power now."""
    os.replace(temporary, target)
    sync(target.parent)


def sync(path: Path) -> None:
    """Bring a file, or the names in a directory, to the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
