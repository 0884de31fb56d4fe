"""Which files of a model are its weights: the one place that decides it, for downloads, lists, plans and starts.

Goes by names and the index alone, so that it answers for a repository on the hub as for a directory. The order is that
of transformers, with one more at its end:

::

    model.safetensors  ─►  what model.safetensors.index.json names  ─►  all other *.safetensors, but for copies of them

An index beside a whole file is of another save, and is not looked at.
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

OF_TRAINING = ("arguments", "args", "training")  # in names of files that are no weights, and may even hold code
NO_WEIGHTS = (*OF_TRAINING, "optimizer", "scheduler", "index")
HIDDEN = (".",)  # begins names of what is not complete, and of what other systems keep about a file
ADAPTER = ("adapter_",)  # begins names of what changes another model
CONSOLIDATED = "consolidated"  # begins names of a copy under other names of tensors
# In names of copies of other widths, as in model.fp16.safetensors. They hold the same, so that one is enough.
VARIANTS = ("bf16", "bfloat16", "fp16", "float16", "fp32", "float32", "fp8", "int8", "8bit", "int4", "4bit", "ema")
NUMBERED = re.compile(r"(?P<before>.*?)(?<!\d)(?P<number>[0-9]{1,6})-of-(?P<total>[0-9]{1,6})(?!\d)(?P<after>.*)")
FOREIGN = (".pth", ".gguf", ".onnx", ".h5", ".msgpack", ".npz", ".ckpt")  # ends names of what nothing here reads

ReadIndex = Callable[[str], Iterable[str]]


@dataclass(frozen=True, slots=True)
class WeightFormat:
    """What files of one format are called."""

    ending: str
    single: str = ""
    index: str = ""


SAFETENSORS = WeightFormat(".safetensors", "model.safetensors", "model.safetensors.index.json")
BIN = WeightFormat(".bin", "pytorch_model.bin", "pytorch_model.bin.index.json")
PT = WeightFormat(".pt")


@dataclass(frozen=True, slots=True)
class WeightFiles:
    """The files that make up a model; none = there are no weights in this format."""

    names: tuple[str, ...] = ()  # in order, with those that are missing
    missing: tuple[str, ...] = ()
    index: str = ""  # that names them; empty = nothing does
    is_half_converted: bool = False  # what is missing is there in PyTorch's format


def choose_weights(names: Iterable[str], form: WeightFormat, read_index: ReadIndex) -> WeightFiles:
    """The weights in one format.

    Args:
        names: of all files; those in folders are left out.
        read_index: gives the names of files that an index has. It is asked only where the answer counts.
    """
    present = {name for name in names if "/" not in name}
    if form.single in present:
        return WeightFiles((form.single,))
    if form.index in present:
        named = sorted(set(read_index(form.index)))
        return WeightFiles(tuple(named), tuple(name for name in named if name not in present), form.index)
    # In PyTorch's format an adapter is something to convert; a server cannot start with one alone.
    loose = choose_loose(present, form.ending, without=HIDDEN + ADAPTER if form is SAFETENSORS else HIDDEN)
    if form is SAFETENSORS and loose.names:
        targets = find_targets(present, read_index)
        unmade = tuple(name for name in targets if name not in present)
        if unmade and len(unmade) < len(targets):
            return WeightFiles(targets, unmade, is_half_converted=True)
    return loose


def choose_pytorch(names: Collection[str], read_index: ReadIndex) -> WeightFiles:
    """The weights in PyTorch's format, from which safetensors can be made."""
    found = choose_weights(names, BIN, read_index)
    return found if found.names else choose_weights(names, PT, read_index)


def converted_name(name: str) -> str:
    """What a file in PyTorch's format becomes."""
    return f"{Path(name).stem.removeprefix('pytorch_')}{SAFETENSORS.ending}"


def find_targets(present: Collection[str], read_index: ReadIndex) -> tuple[str, ...]:
    """What a conversion of all that there is in PyTorch's format makes."""
    try:
        return tuple(sorted(map(converted_name, choose_pytorch(present, read_index).names)))
    except ModelError:  # an index of other files than those that count
        return ()


def is_of_training(name: str) -> bool:
    """Whether a file tells how a model was trained."""
    return any(word in name for word in OF_TRAINING)


def choose_loose(present: Iterable[str], ending: str, without: tuple[str, ...]) -> WeightFiles:
    """All files of one format that no index names, but for copies and what a training run leaves.

    Args:
        without: beginnings of names that do not count.
    """
    by_rank: dict[int, list[str]] = defaultdict(list)
    for name in sorted(present):
        is_other = name.startswith(without) or any(word in name for word in NO_WEIGHTS)
        if name.endswith(ending) and not is_other:
            by_rank[rank_copy(name)].append(name)
    return complete_numbers(by_rank[min(by_rank)]) if by_rank else WeightFiles()


def rank_copy(name: str) -> int:
    """0 for a file whose name has no mark of a copy; of several kinds of copies the lowest is taken."""
    if name.startswith(ADAPTER):
        return len(VARIANTS) + 2
    if name.startswith(CONSOLIDATED):
        return len(VARIANTS) + 1
    marks = [NUMBERED.sub(r"\g<before>", word).rstrip("-") for word in Path(name).stem.split(".")[1:]]
    return min((VARIANTS.index(mark) + 1 for mark in marks if mark in VARIANTS), default=0)


def complete_numbers(names: Iterable[str]) -> WeightFiles:
    """Files that are numbered, as 1-of-2, say themselves what is missing. A part of a set beside a whole one is old."""
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
    """Names of the rest of a set, which counts from 0 or from 1."""
    before, total, after = key
    first = min(min(numbered), 1)
    width = max(len(name) for name in numbered.values()) - len(f"{before}-of-{total}{after}")
    expected = range(first, first + int(total))
    return [f"{before}{number:0{width}}-of-{total}{after}" for number in expected if number not in numbered]


# -- In a directory ----------------------------------------------------------------------------------------------------


def find_weights(model_dir: Path) -> WeightFiles:
    """The safetensors files that make up the model in a directory; all are there.

    Raises:
        ModelError: there are none, or some are missing; the text names what told of them.
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
            advice = f"download it again, or remove {found.index} if it is of other weights"
            if os.path.dirname(found.missing[0]):
                advice = f"it lies in a folder, which is not read: move it beside config.json, and remove {found.index}"
        elif found.is_half_converted:
            told_by, advice = "that a conversion makes", "`tgis convert-to-safetensors` goes on with it"
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
    """What to do about a directory without safetensors."""
    try:
        sources = choose_pytorch(names, lambda index: [index.removesuffix(".index.json")]).names
    except ModelError:
        sources = ()
    if sources:
        return f"it has {sources[0]}: `tgis convert-to-safetensors` makes them"
    if adapters := [name for name in sorted(names) if name.startswith(ADAPTER) and name.endswith(SAFETENSORS.ending)]:
        return f"{adapters[0]} changes another model: name that one"
    if others := [name for name in sorted(names) if name.endswith(FOREIGN)]:
        return f"it has {others[0]}, a format that is not read: get the model as safetensors"
    if unlikely := [
        name for name in sorted(names) if name.endswith(SAFETENSORS.ending) and not name.startswith(HIDDEN)
    ]:
        return (
            f"{unlikely[0]} is taken for a file of a training run: if it holds the model, call it {SAFETENSORS.single}"
        )
    return "download the model first"


def read_weight_map(index: Path) -> dict[str, str]:
    """The file of each tensor.

    Raises:
        ModelError: the index cannot be read, or is none.
    """
    return check_weight_map(read_json(index), str(index))


def parse_weight_map(text: str | bytes, index: str) -> dict[str, str]:
    """The same from an index's text.

    Args:
        index: what it is called in errors.
    """
    return check_weight_map(parse_json(text, index), index)


def check_weight_map(values: dict[str, Any], index: str) -> dict[str, str]:
    found = values.get("weight_map")
    if not isinstance(found, dict) or not found:
        raise failures.INDEX_EMPTY.error(index=index)
    return {str(tensor): PurePosixPath(str(file)).as_posix() for tensor, file in found.items()}  # ./a is a
