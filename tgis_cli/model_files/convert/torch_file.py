"""Reads PyTorch's weight files as a table of tensors, without torch and without running anything they contain.

A file consists of a pickle that describes tensors, and of the tensors' data. The unpickler supports only the few
functions that describe tensors, which it turns into :class:`StoredTensor`; it refuses all others by name. The data is
not read. Both formats of ``torch.save`` are supported: zip archives (since torch 1.6) and the older one, in which the
data follows the pickle; see ``torch/serialization.py`` of PyTorch.

torch itself is not used because importing it takes longer than converting most files.
"""

from __future__ import annotations

import errno
import itertools
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

from tgis_server.errors import ModelError
from tgis_server.host.regular_file import open_regular
from tgis_server.model_files import TENSOR_DTYPES, read_beginning, refuse_stand_in

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
WRAPPERS = ("state_dict", "model_state_dict")
LOCAL_HEADER_BYTES = 30  # of an entry in a zip archive, before the name and extra field

# Errors of an unpickler on bytes that are not a pickle.
NOT_A_PICKLE = (
    pickle.UnpicklingError,
    struct.error,
    zipfile.BadZipFile,
    EOFError,
    LookupError,
    ValueError,
    TypeError,
    AttributeError,
    AssertionError,
    OverflowError,
    MemoryError,
    RecursionError,
)

STORAGES = {
    "BoolStorage": "bool",
    "ByteStorage": "uint8",
    "CharStorage": "int8",
    "ShortStorage": "int16",
    "IntStorage": "int32",
    "LongStorage": "int64",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "FloatStorage": "float32",
    "DoubleStorage": "float64",
    "ComplexFloatStorage": "complex64",
    "UntypedStorage": "uint8",
}


@dataclass(frozen=True, slots=True)
class Dtype:
    """A dtype in a pickle, such as ``torch.float16``."""

    name: str


@dataclass(frozen=True, slots=True)
class Storage:
    """A range of data that tensors are views of."""

    key: str
    dtype: str
    offset: int  # in elements, if the storage is part of another


@dataclass(frozen=True, slots=True)
class View:
    """A tensor as the pickle describes it."""

    storage: Storage
    dtype: str
    offset: int  # in elements
    shape: tuple[int, ...]
    strides: tuple[int, ...]  # in elements


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor and the place of its data in the file."""

    dtype: str  # as safetensors spells it
    item_bytes: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]  # in elements
    start: int  # in the file, in bytes

    @property
    def num_bytes(self) -> int:
        return prod(self.shape) * self.item_bytes

    @property
    def end(self) -> int:
        """The end of the last byte that it uses."""
        if not self.num_bytes:
            return self.start
        last = sum((size - 1) * stride for size, stride in zip(self.shape, self.strides, strict=True))
        return self.start + (last + 1) * self.item_bytes

    @property
    def is_contiguous(self) -> bool:
        """Whether its elements are in the order that safetensors require."""
        expected_strides = tuple(itertools.accumulate(reversed(self.shape), lambda all_, size: all_ * size, initial=1))[
            -2::-1
        ]
        sizes = zip(self.shape, self.strides, expected_strides, strict=True)
        return all(size == 1 or stride == expected for size, stride, expected in sizes)

    @property
    def is_dense(self) -> bool:
        """Whether it uses every byte from its first to its last, in any order."""
        return self.end - self.start == self.num_bytes


class Refused(Exception):
    """The pickle uses something that is not needed to describe tensors."""


class Unsupported(Exception):
    """A tensor is of a kind that safetensors cannot store."""


# The functions that pickles of tensors call.


def rebuild_tensor(
    storage: Storage, offset: int, shape: Any, strides: Any, grad: Any = False, hooks: Any = None, flags: Any = None
) -> View:
    return make_view(storage, storage.dtype, offset, shape, strides, flags)


def rebuild_tensor_v3(
    storage: Storage,
    offset: int,
    shape: Any,
    strides: Any,
    grad: Any,
    hooks: Any,
    dtype: Dtype,
    flags: Any = None,
) -> View:
    return make_view(storage, dtype.name, offset, shape, strides, flags)


def make_view(storage: Storage, dtype: str, offset: int, shape: Any, strides: Any, flags: Any) -> View:
    if not isinstance(storage, Storage):
        raise TypeError(f"a tensor in a {type(storage).__name__}")
    if flags and any(flags.values()):  # the stored data differs from the tensor's values
        raise Unsupported(f"{' and '.join(flags)} views of other tensors")
    return View(storage, dtype, int(offset), tuple(map(int, shape)), tuple(map(int, strides)))


def rebuild_parameter(data: View, *_: Any) -> View:
    return data


def rebuild_with_attributes(function: Callable[..., Any], _kind: Any, arguments: Any, _attributes: Any) -> Any:
    return function(*arguments)


class Ignored:
    """A value that does not describe tensors."""

    def __init__(self, *_: Any) -> None:
        pass


KNOWN: dict[tuple[str, str], Callable[..., Any]] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch", "Size"): tuple,
    ("torch", "Tensor"): Ignored,
    ("torch", "device"): Ignored,
    ("torch.nn.parameter", "Parameter"): Ignored,
    ("torch._utils", "_rebuild_tensor"): rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v3"): rebuild_tensor_v3,
    ("torch._utils", "_rebuild_parameter"): rebuild_parameter,
    ("torch._utils", "_rebuild_parameter_with_state"): rebuild_parameter,
    ("torch._tensor", "_rebuild_from_type_v2"): rebuild_with_attributes,
    # Plain values under the Python 2 names that torch.save's pickle protocol uses.
    ("_codecs", "encode"): Ignored,
    ("__builtin__", "set"): Ignored,
    ("__builtin__", "complex"): Ignored,
}
UNSUPPORTED = {
    "_rebuild_sparse_tensor": "sparse tensors",
    "_rebuild_sparse_csr_tensor": "sparse tensors",
    "_rebuild_nested_tensor": "nested tensors",
    "_rebuild_qtensor": "quantized tensors",
    "_rebuild_meta_tensor_no_storage": "tensors without data",
    "ComplexDoubleStorage": "tensors of type complex128",
    "complex128": "tensors of type complex128",
    "complex32": "tensors of type complex32",
    "float8_e4m3fnuz": "tensors of type float8_e4m3fnuz",
    "float8_e5m2fnuz": "tensors of type float8_e5m2fnuz",
}


class TensorUnpickler(pickle._Unpickler):
    """Supports tensors, dictionaries, lists and plain values. Collects the storages.

    Derived from the unpickler in Python, as the one in C allocates whatever size a number in the file states.
    """

    # All opcodes except one that PyTorch's files do not use.
    dispatch: ClassVar = {
        opcode: load for opcode, load in pickle._Unpickler.dispatch.items() if opcode != pickle.BYTEARRAY8[0]
    }

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file, encoding="utf-8")
        self.storages: dict[str, Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in KNOWN:
            return KNOWN[module, name]
        if module in ("torch", "torch.storage") and name in STORAGES:
            return Dtype(STORAGES[name])
        if module == "torch" and name in TENSOR_DTYPES:
            return Dtype(name)
        if module in ("torch", "torch._utils") and name in UNSUPPORTED:
            raise Unsupported(UNSUPPORTED[name])
        raise Refused(f"{module}.{name}")

    def load_build(self) -> None:
        """Skip the attributes of objects: they do not describe tensors, and setting them might change those that do."""
        self.stack.pop()  # type: ignore[attr-defined]  # typeshed: has no stack

    dispatch[pickle.BUILD[0]] = load_build  # type: ignore[assignment]  # typeshed: takes the base only

    def persistent_load(self, pid: Any) -> Storage:
        kind, dtype, key, _location, _size, *view = pid
        if kind != "storage" or not isinstance(dtype, Dtype):
            raise Refused(f"a stored {kind}")
        offset = int(view[0][1]) if view and view[0] else 0
        storage = Storage(str(key), dtype.name, offset)
        self.storages.setdefault(storage.key, storage)
        return storage


def read_torch_file(path: Path) -> tuple[dict[str, StoredTensor], tuple[str, ...]]:
    """The tensors of a file by name, and the names of other entries.

    Raises:
        ModelError: the file is damaged, or contains code or something that safetensors cannot store.
        OSError: it cannot be read.
    """
    try:
        with open_regular(path) as file:
            raw, starts = read_zip(path, file) if zipfile.is_zipfile(file) else read_legacy(path, file)
        return find_tensors(path, unwrap(path, raw), starts)
    except Refused as error:
        raise ModelError(
            f"{path} is not converted: reading it would run {error}, and anything but tensors may be harmful code. Get "
            "the model as safetensors, or have someone you trust save only its tensors."
        ) from error
    except Unsupported as error:
        raise ModelError(f"{path} contains {error}, which safetensors cannot store.") from error
    except NOT_A_PICKLE as error:
        raise damaged(path) from error
    except OSError as error:
        if error.errno == errno.EINVAL:  # the archive's directory points before the file
            raise damaged(path) from error
        raise


def find_tensors(
    path: Path, entries: Mapping[str, Any], starts: Mapping[str, int]
) -> tuple[dict[str, StoredTensor], tuple[str, ...]]:
    views = {name: entry for name, entry in entries.items() if isinstance(entry, View)}
    if not views:
        raise ModelError(f"{path} contains no tensors, so it is not a weight file.")
    file_bytes = path.stat().st_size
    tensors = {name: locate(path, view, starts, file_bytes) for name, view in views.items()}
    return tensors, tuple(name for name in entries if name not in views)


def damaged(path: Path) -> ModelError:
    try:
        refuse_stand_in(path, read_beginning(path))
    except ModelError as error:
        return error
    return ModelError(f"{path} is damaged, incomplete, or not a weight file: download it again.")


def compressed(path: Path) -> ModelError:
    return ModelError(f"{path} is compressed, but torch.save never compresses: get the original file.")


def read_zip(path: Path, file: BinaryIO) -> tuple[Any, dict[str, int]]:
    """The unpickled object, and where each storage begins in the file."""
    with zipfile.ZipFile(file) as archive:
        entries = {info.filename: info for info in archive.infolist()}
        (pickled,) = [name for name in entries if name.endswith("/data.pkl") or name == "data.pkl"]
        prefix = pickled.removesuffix("data.pkl")
        if entries[pickled].compress_type != zipfile.ZIP_STORED:
            raise compressed(path)
        if f"{prefix}byteorder" in entries and archive.read(f"{prefix}byteorder") != b"little":
            raise ModelError(f"{path} was saved on a big-endian machine: save it again on a little-endian one.")
        with archive.open(pickled) as stream:
            unpickler = TensorUnpickler(stream)  # type: ignore[arg-type]  # typeshed: IO[bytes]
            raw = unpickler.load()
    starts = {}
    for key in unpickler.storages:
        info = entries[f"{prefix}data/{key}"]
        if info.compress_type != zipfile.ZIP_STORED:
            raise compressed(path)
        file.seek(info.header_offset)
        header = file.read(LOCAL_HEADER_BYTES)
        name_bytes, extra_bytes = int.from_bytes(header[26:28], "little"), int.from_bytes(header[28:30], "little")
        starts[key] = info.header_offset + LOCAL_HEADER_BYTES + name_bytes + extra_bytes
    return raw, starts


def read_legacy(path: Path, file: BinaryIO) -> tuple[Any, dict[str, int]]:
    """Like :func:`read_zip`, for the format before torch 1.6."""
    file.seek(0)
    if TensorUnpickler(file).load() != LEGACY_MAGIC:
        raise damaged(path)
    TensorUnpickler(file).load()  # the protocol version, which has never changed
    if not TensorUnpickler(file).load().get("little_endian", True):
        raise ModelError(f"{path} was saved on a big-endian machine: save it again on a little-endian one.")
    unpickler = TensorUnpickler(file)
    raw = unpickler.load()
    keys = TensorUnpickler(file).load()
    starts = {}
    position = file.tell()
    for key in map(str, keys):
        file.seek(position)
        num_elements = int.from_bytes(file.read(8), "little")
        starts[key] = position + 8
        position += 8 + num_elements * TENSOR_DTYPES[unpickler.storages[key].dtype][1]
    return raw, starts


def unwrap(path: Path, raw: Any) -> Mapping[str, Any]:
    """The named tensors, which some training frameworks wrap in a dictionary."""
    for wrapper in WRAPPERS:
        if isinstance(raw, Mapping) and isinstance(raw.get(wrapper), Mapping):
            raw = raw[wrapper]
    if not isinstance(raw, Mapping) or not all(isinstance(name, str) for name in raw):
        kind = "tensor" if isinstance(raw, View) else type(raw).__name__
        raise ModelError(f"{path} contains a {kind}, not named tensors, so it is not a weight file.")
    return raw


def locate(path: Path, view: View, starts: Mapping[str, int], file_bytes: int) -> StoredTensor:
    if view.dtype not in TENSOR_DTYPES:
        raise Unsupported(f"tensors of type {view.dtype}")
    name, item_bytes = TENSOR_DTYPES[view.dtype]
    offset = view.storage.offset * TENSOR_DTYPES[view.storage.dtype][1] + view.offset * item_bytes
    tensor = StoredTensor(name, item_bytes, view.shape, view.strides, starts[view.storage.key] + offset)
    if tensor.num_bytes > max(file_bytes, tensor.end - tensor.start):  # one element expanded to many
        raise ModelError(f"{path} contains a tensor that is larger than the file, so it is not a weight file.")
    if tensor.end > file_bytes or min((offset, *view.strides, *view.shape), default=0) < 0:
        raise damaged(path)
    return tensor
