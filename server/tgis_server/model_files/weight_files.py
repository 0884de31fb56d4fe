"""Which files of a model are its weights: decided only here, for downloads, lists, plans and startup.

Only names and the index decide, so that the rules work for a repository on the hub too. The order is that of
transformers, extended at the end:

::

    model.safetensors  ─►  what model.safetensors.index.json names  ─►  all other *.safetensors except copies

An index next to a single whole file is from another save and is ignored.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from tgis_server import failures
from tgis_server.errors import ModelError
from tgis_server.model_files.json_file import parse_json, read_json

OF_TRAINING = ("arguments", "args", "training")  # found in names of files that are not weights and may contain code
NO_WEIGHTS = (*OF_TRAINING, "optimizer", "scheduler", "index")
HIDDEN = (".",)  # prefix of incomplete files, and of metadata files of other systems
ADAPTER = ("adapter_",)  # prefix of adapters to another model
CONSOLIDATED = "consolidated"  # prefix of copies with other tensor names
# Any of these in a name marks a copy with another dtype, such as model.fp16.safetensors.
VARIANTS = ("bf16", "bfloat16", "fp16", "float16", "fp32", "float32", "fp8", "int8", "8bit", "int4", "4bit", "ema")
NUMBERED = re.compile(r"(?P<before>.*?)(?<!\d)(?P<number>[0-9]{1,6})-of-(?P<total>[0-9]{1,6})(?!\d)(?P<after>.*)")
FOREIGN = (".pth", ".gguf", ".onnx", ".h5", ".msgpack", ".npz", ".ckpt")  # formats that are not read

ReadIndex = Callable[[str], Iterable[str]]


@dataclass(frozen=True, slots=True)
class WeightFormat:
    """The file names of one format."""

    ending: str
    single: str = ""
    index: str = ""


SAFETENSORS = WeightFormat(".safetensors", "model.safetensors", "model.safetensors.index.json")
BIN = WeightFormat(".bin", "pytorch_model.bin", "pytorch_model.bin.index.json")
PT = WeightFormat(".pt")


@dataclass(frozen=True, slots=True)
class WeightFiles:
    """The files that make up a model; empty if there are no weights in this format."""

    names: tuple[str, ...] = ()  # sorted, including the missing ones
    missing: tuple[str, ...] = ()
    index: str = ""  # the index that names them; empty: none
    is_half_converted: bool = False  # the missing files exist in PyTorch's format


def choose_weights(names: Iterable[str], form: WeightFormat, read_index: ReadIndex) -> WeightFiles:
    """The weights in one format.

    Args:
        names: the names of all files; those in folders are ignored.
        read_index: returns the file names in an index. Called only if the index is used.
    """
    present = {name for name in names if "/" not in name}
    if form.single in present:
        return WeightFiles((form.single,))
    if form.index in present:
        named = sorted(set(read_index(form.index)))
        return WeightFiles(tuple(named), tuple(name for name in named if name not in present), form.index)
    # A PyTorch adapter is converted; a server cannot start with a safetensors adapter alone.
    loose = choose_loose(present, form.ending, without=HIDDEN + ADAPTER if form is SAFETENSORS else HIDDEN)
    if form is SAFETENSORS and loose.names:
        targets = find_targets(present, read_index)
        unmade = tuple(name for name in targets if name not in present)
        if unmade and len(unmade) < len(targets):
            return WeightFiles(targets, unmade, is_half_converted=True)
    return loose


def choose_pytorch(names: Collection[str], read_index: ReadIndex) -> WeightFiles:
    """The weights in PyTorch's format, which can be converted to safetensors."""
    found = choose_weights(names, BIN, read_index)
    return found if found.names else choose_weights(names, PT, read_index)


def converted_name(name: str) -> str:
    """The name of a PyTorch file after conversion."""
    return f"{Path(name).stem.removeprefix('pytorch_')}{SAFETENSORS.ending}"


def find_targets(present: Collection[str], read_index: ReadIndex) -> tuple[str, ...]:
    """The files that a conversion of all PyTorch weights would make."""
    try:
        return tuple(sorted(map(converted_name, choose_pytorch(present, read_index).names)))
    except ModelError:  # the broken index of files that are not used
        return ()


def is_of_training(name: str) -> bool:
    """Whether a file belongs to a training run."""
    return any(word in name for word in OF_TRAINING)


def choose_loose(present: Iterable[str], ending: str, without: tuple[str, ...]) -> WeightFiles:
    """All files of one format without an index, except copies and leftovers of training runs.

    Args:
        without: prefixes of names to ignore.
    """
    by_rank: dict[int, list[str]] = defaultdict(list)
    for name in sorted(present):
        is_other = name.startswith(without) or any(word in name for word in NO_WEIGHTS)
        if name.endswith(ending) and not is_other:
            by_rank[rank_copy(name)].append(name)
    return complete_numbers(by_rank[min(by_rank)]) if by_rank else WeightFiles()


def rank_copy(name: str) -> int:
    """0 for a file that is not marked as a copy; among copies, the lowest rank is used."""
    if name.startswith(ADAPTER):
        return len(VARIANTS) + 2
    if name.startswith(CONSOLIDATED):
        return len(VARIANTS) + 1
    marks = [NUMBERED.sub(r"\g<before>", word).rstrip("-") for word in Path(name).stem.split(".")[1:]]
    return min((VARIANTS.index(mark) + 1 for mark in marks if mark in VARIANTS), default=0)


def complete_numbers(names: Iterable[str]) -> WeightFiles:
    """Find missing files by numbers such as 1-of-2. An incomplete set next to a complete one is old and ignored."""
    taken: list[str] = []
    sets: dict[tuple[str, str, str], dict[int, str]] = defaultdict(dict)
    for name in names:
        if found := NUMBERED.fullmatch(name):
            sets[found["before"], found["total"], found["after"]][int(found["number"])] = name
        else:
            taken.append(name)
    lacking = {key: find_lacking(key, numbered) for key, numbered in sets.items()}
    has_whole = not all(lacking.values())
    missing = [] if has_whole else [name for names in lacking.values() for name in names]
    for key, numbered in sets.items():
        if not (has_whole and lacking[key]):
            taken += numbered.values()
    return WeightFiles(tuple(sorted((*taken, *missing))), tuple(sorted(missing)))


def find_lacking(key: tuple[str, str, str], numbered: Mapping[int, str]) -> list[str]:
    """The missing names of a numbered set, which starts at 0 or 1."""
    before, total, after = key
    first = min(min(numbered), 1)
    width = max(len(name) for name in numbered.values()) - len(f"{before}-of-{total}{after}")
    expected = range(first, first + int(total))
    return [f"{before}{number:0{width}}-of-{total}{after}" for number in expected if number not in numbered]


# -- In a directory ----------------------------------------------------------------------------------------------------


def find_weights(model_dir: Path) -> WeightFiles:
    """The safetensors files that make up the model in a directory; all exist.

    Raises:
        ModelError: there are none, or some are missing; the text says how that is known.
    """
    try:
        names = os.listdir(model_dir)
    except OSError as error:
        raise failures.WEIGHTS_UNREADABLE.error(file=model_dir, reason=error.strerror) from error
    found = choose_weights(names, SAFETENSORS, lambda index: read_weight_map(model_dir / index).values())
    if not found.names:
        raise failures.WEIGHTS_NOT_FOUND.error(model_dir=model_dir, hint=advise_without_weights(names))
    if found.missing:
        told_by, advice = "according to the numbering of the others", "download it again"
        if found.index:
            told_by = f"that {found.index} names"
            advice = f"download it again, or remove {found.index} if it belongs to other weights"
            if os.path.dirname(found.missing[0]):
                advice = f"it is in a folder, which is not read: move it next to config.json, and remove {found.index}"
        elif found.is_half_converted:
            told_by, advice = "that a conversion makes", "complete it with `tgis convert-to-safetensors`"
        raise failures.WEIGHTS_INCOMPLETE.error(
            model_dir=model_dir,
            num_missing=len(found.missing),
            num_files=len(found.names),
            told_by=told_by,
            missing=found.missing[0],
            advice=advice,
        )
    return found


def advise_without_weights(names: Collection[str]) -> str:
    """Advice for a directory without safetensors."""
    try:
        sources = choose_pytorch(names, lambda index: [index.removesuffix(".index.json")]).names
    except ModelError:
        sources = ()
    if sources:
        return f"it has {sources[0]}: convert it with `tgis convert-to-safetensors`"
    if adapters := [name for name in sorted(names) if name.startswith(ADAPTER) and name.endswith(SAFETENSORS.ending)]:
        return f"{adapters[0]} is an adapter to another model: name that model"
    if others := [name for name in sorted(names) if name.endswith(FOREIGN)]:
        return f"it has {others[0]}, a format that is not supported: get the model as safetensors"
    if unlikely := [
        name for name in sorted(names) if name.endswith(SAFETENSORS.ending) and not name.startswith(HIDDEN)
    ]:
        return f"{unlikely[0]} looks like a file of a training run: if it is the model, rename it {SAFETENSORS.single}"
    return "download the model first"


def read_weight_map(index: Path) -> dict[str, str]:
    """The file of each tensor.

    Raises:
        ModelError: the index cannot be read, or is not an index.
    """
    return check_weight_map(read_json(index), str(index))


def parse_weight_map(text: str | bytes, index: str) -> dict[str, str]:
    """Like :func:`read_weight_map`, from an index's text.

    Args:
        index: name for error messages.
    """
    return check_weight_map(parse_json(text, index), index)


def check_weight_map(values: dict[str, Any], index: str) -> dict[str, str]:
    found = values.get("weight_map")
    if not isinstance(found, dict) or not found:
        raise failures.INDEX_EMPTY.error(index=index)
    return {str(tensor): PurePosixPath(str(file)).as_posix() for tensor, file in found.items()}  # ./a is a
