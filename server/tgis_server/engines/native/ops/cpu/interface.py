"""The structures of ``csrc/core.h`` that Python fills in, as ctypes. Imports no torch."""

from __future__ import annotations

import ctypes
from ctypes import POINTER, c_char_p, c_int32, c_int64, c_void_p

FLOAT32, BFLOAT16 = 0, 1  # Dtype
COLUMNS = 32  # kColumns: rows of buffers are padded to as many elements


class Buffer(ctypes.Structure):
    _fields_ = (("data", c_void_p), ("stride", c_int64))


class Rows(ctypes.Structure):
    _fields_ = (
        ("num_rows", c_int64),
        *((name, c_void_p) for name in ("starts", "num_tokens", "num_keys", "slots", "tables")),
        ("table_stride", c_int64),
    )


class Step(ctypes.Structure):
    _fields_ = (
        ("num_tokens", c_int64),
        ("num_threads", c_int32),
        ("buffers", POINTER(Buffer)),
        ("rows", POINTER(Rows)),
    )


class LinearArgs(ctypes.Structure):
    _fields_ = (
        *((name, c_int32) for name in ("dtype", "input", "output")),
        *((name, c_int64) for name in ("num_inputs", "num_outputs")),
        *((name, c_void_p) for name in ("weight", "bias")),
    )


SIGNATURES = {
    "tgis_kernels": (c_void_p, c_char_p),
    "tgis_input_bytes": (c_int32, c_void_p, c_int32),
    "tgis_packed_bytes": (c_int64, c_void_p, c_int32, c_int64, c_int64),
    "tgis_pack": (None, c_void_p, c_int32, c_void_p, c_int64, c_int64, c_int64, c_void_p, c_int32),
    "tgis_new_program": (c_void_p, c_void_p),
    "tgis_delete_program": (None, c_void_p),
    "tgis_linear": (None, c_void_p, POINTER(LinearArgs)),
    "tgis_run": (None, c_void_p, c_int64, c_int64, POINTER(Step)),
}


def load(path: str) -> ctypes.CDLL:
    """Load a library and declare its functions.

    Raises:
        OSError: it cannot be loaded.
        AttributeError: it lacks a function.
    """
    library = ctypes.CDLL(path)
    for name, (result, *arguments) in SIGNATURES.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library
