"""Which files of a repository a download takes: names only, nothing is looked at.

The rules for ``--extension`` are those of the original's ``download-weights``, with what its defaults leave out.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path

from tgis_server.engines.native.checkpoint import INDEX_FILE, OF_TRAINING, SINGLE_FILE
from tgis_server.errors import ModelError, UsageError
from tgis_server.regular_file import read_regular

SAFETENSORS, BIN, PT = ".safetensors", ".bin", ".pt"
PYTORCH = (BIN, PT)
# Configuration, tokenizers of all kinds and their templates, remote code, the model card.
COMPANIONS = (".json", ".py", ".model", ".md", ".txt", ".tiktoken", ".jinja")
BIN_INDEX = "pytorch_model.bin.index.json"
SINGLE_BIN = "pytorch_model.bin"

ReadText = Callable[[str], str]


def parse_extensions(text: str) -> tuple[str, ...]:
    """Endings from a comma list.

    Exactly one, which is none of the companions, brings these along; several are taken as they are.

    Raises:
        UsageError: none is given.
    """
    given = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    if not given:
        raise UsageError("--extension is empty: name endings of files, such as .safetensors or .bin,.json.")
    given = tuple(ending if ending.startswith(".") else f".{ending}" for ending in given)
    is_alone = len(given) == 1 and given[0] not in COMPANIONS
    return (*given, *COMPANIONS) if is_alone else given


def select_names(
    names: Iterable[str], extensions: tuple[str, ...], read_text: ReadText, *, with_bin: bool
) -> list[str]:
    """Files to take, in order of their names.

    Of several sets of weights in one format, one is taken: that of the index, else the single file of the usual name.

    Args:
        names: paths of all files.
        read_text: gives the text of an index.
        with_bin: take PyTorch's format where safetensors are asked for and there are none.

    Raises:
        ModelError: an index is broken, or names files that there are not.
    """
    present = [name for name in sorted(names) if "/" not in name]
    candidates = [name for name in present if not any(word in name for word in OF_TRAINING)]
    taken = [name for name in candidates if name.endswith(extensions)]
    if with_bin and SAFETENSORS in extensions and not any(name.endswith(SAFETENSORS) for name in taken):
        taken += [name for name in candidates if name.endswith(PYTORCH) and name not in taken]
    foreign = set()
    for ending, index, single in ((SAFETENSORS, INDEX_FILE, SINGLE_FILE), (BIN, BIN_INDEX, SINGLE_BIN)):
        weights = [name for name in taken if name.endswith(ending)]
        if wanted := find_weights(weights, present, index, single, read_text):
            foreign |= set(weights) - wanted
        elif index in taken and not weights:
            foreign.add(index)  # of weights that are not taken
    if any(name.endswith(BIN) for name in set(taken) - foreign):
        foreign |= {name for name in taken if name.endswith(PT) and PT not in extensions}
    return sorted(set(taken) - foreign)


def drop_converted(names: list[str], model_dir: Path) -> list[str]:
    """Without PyTorch weights of which a directory has safetensors by now: nobody needs them any more."""
    if any(name.endswith(SAFETENSORS) for name in names) or not has_whole_safetensors(model_dir):
        return names
    return [name for name in names if not name.endswith(PYTORCH) and name != BIN_INDEX]


def has_whole_safetensors(model_dir: Path) -> bool:
    """Whether there are weights that make a model: a single file, or all that an index names."""
    return is_whole(model_dir / SINGLE_FILE) or is_complete(model_dir / INDEX_FILE)


def is_complete(index: Path) -> bool:
    """Whether an index is there, and all that it names."""
    try:
        names = set(read_index(index).values())
    except ModelError:
        return False
    return all(is_whole(index.parent / name) for name in names)


def is_whole(file: Path) -> bool:
    """Whether it is there, with the size that its header says."""
    from tgis_server.engines.native.checkpoint import read_header

    try:
        return file.is_file() and bool(read_header(file))
    except ModelError:
        return False


def read_index(index: Path) -> dict[str, str]:
    """The file of each tensor.

    Raises:
        ModelError: it cannot be read, or is none.
    """
    try:
        return parse_index(str(index), read_regular(index))
    except OSError as error:
        raise ModelError(f"{index} cannot be read ({error.strerror}): check its owner and mode.") from error


def find_weights(weights: list[str], present: list[str], index: str, single: str, read_text: ReadText) -> set[str]:
    """Those that make up the model; empty where nothing tells them from others."""
    if not weights:
        return set()
    if index in present:
        wanted = set(parse_index(index, read_text(index)).values())
        if missing := sorted(wanted - set(present)):
            raise ModelError(f"{index} names {missing[0]}, which the repository does not have: try another revision.")
        return wanted
    return {single} & set(weights)


def parse_index(name: str, text: str | bytes) -> dict[str, str]:
    """The file of each tensor, from an index of weights.

    Raises:
        ModelError: it is none.
    """
    try:
        return {str(tensor): str(file) for tensor, file in json.loads(text)["weight_map"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(
            f"{name} is no index of weights: download the model again, or try another revision."
        ) from error
