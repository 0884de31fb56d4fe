"""Writes a safetensors file from tensors in another file, and compares the two, with little memory.

The kernel copies from file to file, so a conversion costs no more time and memory than a copy. For the format, see
``tgis_server/model_files/headers.py``.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tgis_cli.model_files.cache.disk import Advance, write_all
from tgis_cli.model_files.convert.torch_file import StoredTensor

CHUNK_BYTES = 16 << 20
COMPARED_BYTES = 1 << 20  # per step: two buffers fit into a core's cache

libc = ctypes.CDLL(None, use_errno=True)
libc.memcmp.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)


@dataclass(frozen=True, slots=True)
class Content:
    """The intended content of a file."""

    source: Path
    tensors: Mapping[str, StoredTensor]
    metadata: Mapping[str, str]

    @property
    def num_bytes(self) -> int:
        return sum(tensor.num_bytes for tensor in self.tensors.values())

    def in_order(self) -> list[str]:
        """Names in the order of the data: the widest dtypes first, so that all are aligned."""
        return sorted(self.tensors, key=lambda name: (-self.tensors[name].item_bytes, name))

    def make_head(self) -> bytes:
        """The bytes before the data."""
        header: dict[str, object] = {"__metadata__": dict(self.metadata)}
        end = 0
        for name in self.in_order():
            tensor = self.tensors[name]
            start, end = end, end + tensor.num_bytes
            header[name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [start, end]}
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % 8)
        return len(text).to_bytes(8, "little") + text


def write_content(path: Path, content: Content, advance: Advance, on_written: Callable[[str], None]) -> None:
    """Write a new file, without syncing it.

    Args:
        on_written: called with the name of each tensor that has been written.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
    with os.fdopen(descriptor, "wb", buffering=0) as file, content.source.open("rb", buffering=0) as source:
        write_all(file, content.make_head())
        for name in content.in_order():
            tensor = content.tensors[name]
            if not tensor.is_contiguous:
                for part in gather(content.source, tensor):
                    write_all(file, part)
                    advance(len(part))
            position, end = (tensor.start, tensor.start + tensor.num_bytes) if tensor.is_contiguous else (0, 0)
            while position < end:
                num_bytes = os.sendfile(file.fileno(), source.fileno(), position, min(CHUNK_BYTES, end - position))
                if num_bytes == 0:
                    raise EOFError(f"{content.source} shrank while it was being read")
                position += num_bytes
                advance(num_bytes)
            on_written(name)


def find_difference(path: Path, content: Content, written: Iterable[str]) -> str:
    """The name of the first tensor that differs from its source; empty if the file is correct.

    Args:
        written: names of written tensors from :func:`write_content`, which may still be running.
    """
    head = content.make_head()
    position = len(head)
    with path.open("rb", buffering=0) as file, content.source.open("rb", buffering=0) as source:
        compare = Comparison(source.fileno(), file.fileno())
        for name in written:
            tensor = content.tensors[name]
            if tensor.is_contiguous:
                is_same = compare.ranges(tensor.start, position, tensor.num_bytes)
            else:
                file.seek(position)
                is_same = all(file.read(len(part)) == part for part in gather(content.source, tensor))
            if not is_same:
                return name
            position += tensor.num_bytes
        if not position == os.fstat(file.fileno()).st_size == len(head) + content.num_bytes:
            return "(the size of the file)"
        return "" if os.pread(file.fileno(), len(head), 0) == head else "(the header)"


class Comparison:
    """Compares ranges of two open files."""

    def __init__(self, source: int, target: int) -> None:
        self._files = (source, target)
        self._buffers = [mmap.mmap(-1, COMPARED_BYTES) for _ in range(2)]
        self._addresses = [ctypes.addressof(ctypes.c_char.from_buffer(buffer)) for buffer in self._buffers]

    def ranges(self, source_start: int, target_start: int, size: int) -> bool:
        for done in range(0, size, COMPARED_BYTES):
            num_bytes = min(COMPARED_BYTES, size - done)
            for file, buffer, start in zip(self._files, self._buffers, (source_start, target_start), strict=True):
                if os.preadv(file, [memoryview(buffer)[:num_bytes]], start + done) != num_bytes:
                    return False
            if libc.memcmp(*self._addresses, num_bytes) != 0:
                return False
        return True


def gather(source: Path, tensor: StoredTensor) -> Iterator[bytes]:
    """The data of a non-contiguous tensor in order, in parts of several rows."""
    import numpy

    if not tensor.num_bytes:
        return
    span = numpy.memmap(source, numpy.uint8, "r", tensor.start, (tensor.end - tensor.start,))
    shape = (*tensor.shape, tensor.item_bytes)
    strides = (*(stride * tensor.item_bytes for stride in tensor.strides), 1)
    rows = numpy.lib.stride_tricks.as_strided(span, shape, strides, writeable=False)
    num_rows = max(1, CHUNK_BYTES * tensor.shape[0] // tensor.num_bytes)
    for start in range(0, tensor.shape[0], num_rows):
        yield rows[start : start + num_rows].tobytes()
