"""Which tensor in the files each name of the model refers to, decided by content, not by file order; without torch.

Names are resolved as in transformers: with the family's prefix, without it (saved from the base model), or with one
prefix too many.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from tgis_server import failures
from tgis_server.errors import TgisError
from tgis_server.model_files.headers import TensorInfo, read_headers
from tgis_server.model_files.weight_files import find_weights, read_weight_map

PREFIXES = ("model.", "transformer.", "gpt_neox.")  # of all tensors except the head, in some family's checkpoints
HEAD = "lm_head.weight"
CHUNK_BYTES = 4 << 20  # per read in a comparison

Tell = Callable[[str], None]  # takes a warning
Find = Callable[[str], TensorInfo | None]  # ``find_tensor`` bound to the tensors of one model


def spellings(name: str) -> tuple[str, ...]:
    """The names that a tensor of the model may have in files. Models with images have a part for text in them."""
    for prefix in PREFIXES:
        if name.startswith(prefix):
            rest = name.removeprefix(prefix)
            return (name, rest, prefix + name, f"language_model.{name}", f"{prefix}language_model.{rest}")
    return (name, *(prefix + name for prefix in PREFIXES), f"language_model.{name}")


def find_tensor(found: Mapping[str, TensorInfo], name: str) -> TensorInfo | None:
    """The tensor that ``name`` refers to.

    Raises:
        ModelError: two spellings of it have different contents.
    """
    candidates = [found[spelling] for spelling in spellings(name) if spelling in found]
    for other in candidates[1:]:
        if not have_same_content(candidates[0], other):
            raise ambiguous(name, candidates[0], other)
    return candidates[0] if candidates else None


def join_headers(
    headers: Iterable[Mapping[str, TensorInfo]], weight_map: Mapping[str, str], tell: Tell
) -> dict[str, TensorInfo]:
    """The tensors of all files. If copies in several files differ, the index names the one to use.

    Args:
        headers: the header of each file.
        weight_map: the file of each tensor, from the index; empty without an index.
        tell: called with a warning about copies that differ from the one used.

    Raises:
        ModelError: copies differ, and no index names the one to use.
    """
    found: dict[str, TensorInfo] = {}
    for header in headers:
        for name, info in header.items():
            found[name] = choose_copy(found[name], info, weight_map, tell) if name in found else info
    return found


def choose_copy(first: TensorInfo, second: TensorInfo, weight_map: Mapping[str, str], tell: Tell) -> TensorInfo:
    if have_same_content(first, second):
        return first
    indexed = Path(str(weight_map.get(first.name, ""))).name
    for chosen, other in ((first, second), (second, first)):
        if chosen.file.name == indexed:
            tell(f"{chosen} is used, as the index states; {other} differs from it.")
            return chosen
    raise ambiguous(first.name, first, second)


def ambiguous(name: str, first: TensorInfo, second: TensorInfo) -> TgisError:
    advice = "remove the file that does not belong to the model"
    if first.file == second.file:
        advice = "save the model again with one of them, or download the file again"
    return failures.TENSOR_AMBIGUOUS.error(tensor=name, first=first, second=second, advice=advice)


def have_same_content(first: TensorInfo, second: TensorInfo) -> bool:
    """Whether two tensors are equal, byte by byte. Stops reading at the first difference.

    Raises:
        ModelError: a file cannot be read.
    """
    if (first.dtype, first.shape) != (second.dtype, second.shape):
        return False
    return all(ours == theirs for ours, theirs in zip(read_chunks(first), read_chunks(second), strict=True))


def is_blank(info: TensorInfo) -> bool:
    """Whether a tensor is all zeros, as in a file without data that was laid out for a plan."""
    return all(chunk.count(0) == len(chunk) for chunk in read_chunks(info))


def read_chunks(info: TensorInfo) -> Iterable[bytes]:
    try:
        with info.file.open("rb", buffering=0) as file:
            for start in range(0, info.num_bytes, CHUNK_BYTES):
                yield os.pread(file.fileno(), min(CHUNK_BYTES, info.num_bytes - start), info.start + start)
    except OSError as error:
        raise failures.WEIGHTS_UNREADABLE.error(file=info.file, reason=error.strerror) from error


def read_tensors(model_dir: Path, tell: Tell) -> dict[str, TensorInfo]:
    """All tensors in the model's safetensors files, whether or not an engine uses them.

    Args:
        tell: called with a warning about copies of a tensor that are not used.

    Raises:
        ModelError: a file is missing or truncated, or two files have different tensors of the same name.
    """
    files = find_weights(model_dir)
    weight_map = read_weight_map(model_dir / files.index) if files.index else {}
    return join_headers(read_headers(model_dir, files), weight_map, tell)
