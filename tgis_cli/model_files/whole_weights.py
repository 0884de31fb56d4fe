"""Whether the weights in a directory are complete, judging by their headers and indexes."""

from __future__ import annotations

from pathlib import Path

from tgis_server.errors import ModelError
from tgis_server.model_files import BIN, PT, find_weights, read_header, read_weight_map

PYTORCH_ENDINGS = (BIN.ending, PT.ending)


def has_whole_safetensors(model_dir: Path) -> bool:
    """Whether startup would find all safetensors that it looks for, each of the right size."""
    try:
        return all(is_whole(model_dir / name) for name in find_weights(model_dir).names)
    except ModelError:
        return False


def has_whole_set(index: Path) -> bool:
    """Whether an index exists, with every file that it names."""
    try:
        names = set(read_weight_map(index).values())
    except ModelError:
        return False
    return all(is_whole(index.parent / name) for name in names)


def is_whole(file: Path) -> bool:
    """Whether a safetensors file exists and has the size that its header states."""
    try:
        return file.is_file() and bool(read_header(file))
    except ModelError:
        return False
