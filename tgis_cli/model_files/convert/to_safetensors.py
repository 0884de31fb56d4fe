"""Converts the PyTorch weights in a model directory to safetensors next to them.

::

    pytorch_model-00001-of-00002.bin ─► .model-00001-of-00002.safetensors.incomplete ─► model-00001-of-00002.safetensors
    ...                                        written, compared with its source, renamed
    pytorch_model.bin.index.json     ─► model.safetensors.index.json                     last: it makes them a model

A killed run leaves only whole files and hidden ones; the next run keeps the former and removes the latter.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Container, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import AbstractContextManager
from pathlib import Path
from queue import SimpleQueue

from tgis_cli.machine.words import count
from tgis_cli.model_files.cache.disk import INCOMPLETE, check_disk, sync, write_errors_explained, written_whole
from tgis_cli.model_files.cache.locks import lock
from tgis_cli.model_files.convert.aliases import Preference, drop_aliases
from tgis_cli.model_files.convert.safetensors_file import Content, find_difference, write_content
from tgis_cli.model_files.convert.torch_file import read_torch_file
from tgis_cli.model_files.whole_weights import PYTORCH_ENDINGS, has_whole_safetensors, has_whole_set, is_whole
from tgis_cli.terminal.progress import Progress, show_progress, tell
from tgis_server.errors import ModelError
from tgis_server.model_files import (
    SAFETENSORS,
    WeightFiles,
    choose_pytorch,
    converted_name,
    read_header,
    read_weight_map,
)
from tgis_server.words.sizes import format_bytes

TICK_S = 0.2


def convert_to_safetensors(model_dir: Path, *, as_json: bool) -> list[str]:
    """Convert all PyTorch weights of a directory; existing safetensors stay.

    Returns:
        The names of new files.

    Raises:
        ModelError: a file is damaged or missing, or contains code or something that safetensors cannot store.
        UsageError: the directory cannot be written.
        NotEnoughDevices: the disk has too little space.
    """
    advice = "converted files go next to their sources, so make it writable, or copy the model to a writable place"
    with write_errors_explained(model_dir, advice), locked(model_dir, as_json=as_json) as is_alone:
        if is_alone:
            for leftover in model_dir.glob(f".*.safetensors*{INCOMPLETE}"):  # left by killed runs
                leftover.unlink(missing_ok=True)
        return convert_locked(model_dir, as_json=as_json)


def locked(model_dir: Path, *, as_json: bool) -> AbstractContextManager[bool]:
    return lock(model_dir, lambda: tell(f"another process is working on {model_dir}: waiting for it", as_json=as_json))


def needs_conversion(model_dir: Path) -> bool:
    """Whether there are PyTorch weights that have not been converted completely."""
    if has_whole_safetensors(model_dir) or not any(path.suffix in PYTORCH_ENDINGS for path in model_dir.iterdir()):
        return False
    sources = find_sources(model_dir)
    return bool(sources) and set(model_dir.glob("*.safetensors")) <= sources.keys()


def convert_locked(model_dir: Path, *, as_json: bool) -> list[str]:
    sources = find_sources(model_dir)
    kept = [target for target in sources if is_whole(target)]
    missing = [target for target in sources if target not in kept]
    index = find_index_to_make(model_dir, sources)
    if not sources:
        tell(f"{model_dir} has no .bin or .pt files: there is nothing to convert", as_json=as_json)
    elif not missing and index is None:
        names = ", ".join(target.name for target in kept[:3])
        tell(f"{names}{' ...' if len(kept) > 3 else ''}: already converted", as_json=as_json)
    if not missing and index is None:
        return []
    # Check everything that can be checked before anything is written.
    tempfile.NamedTemporaryFile(dir=model_dir, prefix=".probe.safetensors.", suffix=INCOMPLETE).close()  # writable?
    contents = {target: read_content(sources[target], model_dir, as_json=as_json) for target in missing}
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
    return [target.name for target in contents]


def find_sources(model_dir: Path) -> dict[Path, Path]:
    """The files to convert, by target.

    Raises:
        ModelError: there are several indexes, or some of the files are missing.
    """
    found = choose_sources(model_dir)
    if found.missing:
        evidence = (
            f"{model_dir / found.index} names" if found.index else f"The numbering of the files in {model_dir} requires"
        )
        raise ModelError(
            f"{evidence} {found.missing[0]}, which does not exist ({len(found.missing)} of {len(found.names)} files "
            "are missing): download the model again."
        )
    if dangling := [name for name in found.names if not (model_dir / name).exists()]:
        raise ModelError(f"{model_dir / dangling[0]} is a dangling link: download the model again.")
    sources: dict[Path, Path] = {}
    for name in found.names:
        sources.setdefault(model_dir / converted_name(name), model_dir / name)
    return sources


def choose_sources(model_dir: Path) -> WeightFiles:
    indexes = sorted(model_dir.glob("*.bin.index.json"))
    if len(indexes) > 1:
        raise ModelError(
            f"{model_dir} has several indexes ({', '.join(path.name for path in indexes)}): keep only the one "
            "for the weights to convert."
        )
    names = [path.name for path in model_dir.iterdir() if not path.is_dir()]
    return choose_pytorch(names, lambda index: read_weight_map(model_dir / index).values())


def find_index_to_make(model_dir: Path, sources: Mapping[Path, Path]) -> Path | None:
    """The index that turns several files into a model, if it is needed and missing."""
    index = model_dir / SAFETENSORS.index
    is_one_model = len(sources) == 1 or model_dir / SAFETENSORS.single in sources
    is_needed = bool(sources) and not (is_one_model and not choose_sources(model_dir).index)
    return index if is_needed and not has_whole_set(index) else None


def drop_damaged(model_dir: Path, published: Container[str], *, as_json: bool) -> None:
    """Compare converted files with their sources, if these still exist, and remove those that differ.

    Args:
        published: names of files in the repository, which are not conversions.
    """
    with locked(model_dir, as_json=as_json):
        try:
            found = find_sources(model_dir)
        except ModelError:  # some sources were removed after the conversion
            return
        sources = {target: found[target] for target in found if target.name not in published and is_whole(target)}
        contents = {target: read_content(source, model_dir, as_json=as_json) for target, source in sources.items()}
        num_bytes = sum(content.num_bytes for content in contents.values())
        with show_progress("comparing", num_bytes, as_json=as_json) as progress:
            for target, content in contents.items():
                if find_difference(target, content, count_names(content, progress)):
                    progress.tell(f"{target.name} differs from its source", "damaged", name=target.name)
                    target.unlink()


def count_names(content: Content, progress: Progress) -> Iterator[str]:
    """Yield the names of tensors; each is counted when the next is requested."""
    for name in content.in_order():
        yield name
        progress.advance(content.tensors[name].num_bytes)


def read_content(source: Path, model_dir: Path, *, as_json: bool) -> Content:
    """The content of a target."""
    try:
        tensors, left_out = read_torch_file(source)
    except OSError as error:
        raise ModelError(f"{source} cannot be read ({error.strerror}): check its owner and mode.") from error
    for name in left_out:
        tell(f"{source.name}: {name} is not a tensor and is left out", "left_out", as_json=as_json, name=name)
    kept, removed = drop_aliases(source, tensors, lambda: Preference.of(model_dir))
    return Content(source, kept, {"format": "pt", **removed})


def join_names(targets: Iterable[Path], contents: Mapping[Path, Content]) -> dict[str, str]:
    """The file of every tensor.

    Raises:
        ModelError: two files have a tensor of the same name.
    """
    weight_map: dict[str, str] = {}
    for target in targets:
        content = contents.get(target)
        for name in content.tensors if content else read_header(target):
            if name in weight_map:
                raise ModelError(
                    f"{name} is in {weight_map[name]} and in {target.name}: the .bin files are not from one model; "
                    "keep only those that belong together."
                )
            weight_map[name] = target.name
    return weight_map


def write_target(target: Path, content: Content, progress: Progress) -> None:
    """Write and rename a target. A thread compares each tensor with its source during the writing and the sync."""
    written: SimpleQueue[str | None] = SimpleQueue()
    with written_whole(target) as temporary, ThreadPoolExecutor(1) as pool:
        temporary.touch()
        comparing = pool.submit(find_difference, temporary, content, iter(written.get, None))
        try:
            write_content(temporary, content, progress.advance, written.put)
        finally:
            written.put(None)
        sync(temporary)
        while not wait([comparing], TICK_S).done:
            progress.tick()
        if name := comparing.result():
            raise ModelError(
                f"The output tensors do not match for key {name}: check the disk that holds {target.parent}."
            )
    progress.tell(
        f"{target.name}: {format_bytes(content.num_bytes)}", "file", name=target.name, bytes=content.num_bytes
    )


def write_index(index: Path, weight_map: Mapping[str, str]) -> None:
    total = 0
    for name in set(weight_map.values()):
        with (index.parent / name).open("rb") as file:
            total += os.fstat(file.fileno()).st_size - 8 - int.from_bytes(file.read(8), "little")
    text = json.dumps({"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}, indent=2)
    with written_whole(index) as temporary:
        temporary.write_text(text + "\n")
