"""Headers of safetensors files: names, dtypes, shapes and offsets of tensors.

Format: 8 bytes with the header's length (little endian), the header as JSON (name -> dtype, shape, data_offsets), then
the data. See https://github.com/huggingface/safetensors.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tgis_server import failures
from tgis_server.errors import TgisError
from tgis_server.host.regular_file import open_regular
from tgis_server.model_files.stand_ins import read_beginning, refuse_stand_in
from tgis_server.model_files.weight_files import WeightFiles

MAX_HEADER_BYTES = 100_000_000  # as in the reference implementation


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One entry of a safetensors header."""

    file: Path
    name: str  # in the file
    dtype: str  # as in the header
    shape: tuple[int, ...]
    start: int  # offset of its data in the file
    num_bytes: int

    def __str__(self) -> str:
        return f"{self.name} in {self.file.name}"


def read_headers(model_dir: Path, files: WeightFiles) -> Iterator[dict[str, TensorInfo]]:
    """The header of each file; see :func:`read_header`."""
    return (read_header(model_dir / name) for name in files.names)


def read_header(file: Path) -> dict[str, TensorInfo]:
    """The tensors of one safetensors file, by name.

    Raises:
        ModelError: the file cannot be read, has no valid header, or does not have the size that the header states.
    """
    try:
        size = file.stat().st_size
        with open_regular(file) as stream:
            length = int.from_bytes(stream.read(8), "little")
            if size < 8 or length > MAX_HEADER_BYTES:
                raise _no_header(
                    file, f"it has {size} bytes" if size < 8 else "its first bytes are not the length of a header"
                )
            if length > size - 8:
                raise _truncated(file, size, 8 + length)
            raw = stream.read(length)
    except OSError as error:
        raise failures.WEIGHTS_UNREADABLE.error(file=file, reason=error.strerror) from error
    try:
        entries: dict[str, Any] = json.loads(raw)
        entries.pop("__metadata__", None)
        infos, end = {}, 0
        for name, entry in entries.items():
            start, stop = map(int, entry["data_offsets"])
            shape = tuple(map(int, entry["shape"]))
            infos[name] = TensorInfo(file, name, str(entry["dtype"]), shape, 8 + length + start, stop - start)
            end = max(end, stop)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise _no_header(file, "its header cannot be read") from error
    if size != 8 + length + end:
        raise _truncated(file, size, 8 + length + end)
    return infos


def _no_header(file: Path, reason: str) -> TgisError:
    refuse_stand_in(file, read_beginning(file))
    return failures.WEIGHTS_NO_HEADER.error(file=file, reason=reason)


def _truncated(file: Path, size: int, expected: int) -> TgisError:
    problem = "it was cut short" if size < expected else "something was appended to it"
    return failures.WEIGHTS_TRUNCATED.error(file=file, size=size, expected=expected, problem=problem)
