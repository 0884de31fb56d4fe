"""The structures of ``csrc/core.h`` that Python fills in, as ctypes. Imports no torch."""

from __future__ import annotations

import _ctypes
import ctypes
import os
import struct
from ctypes import POINTER, c_char_p, c_float, c_int32, c_int64, c_void_p

FLOAT32, BFLOAT16 = 0, 1  # Dtype
CHOICE_WORDS = 6  # Chosen::kWords
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


class NormArgs(ctypes.Structure):
    _fields_ = (
        *((name, c_int32) for name in ("dtype", "kind", "residual", "addend", "output", "to_input")),
        ("width", c_int64),
        *((name, c_void_p) for name in ("weight", "bias")),
        *((name, c_float) for name in ("eps", "scale")),
    )


class ActivationArgs(ctypes.Structure):
    _fields_ = (
        *((name, c_int32) for name in ("dtype", "kind", "is_gated", "input", "output")),
        *((name, c_int64) for name in ("width", "num_lines")),
    )


class SquaresArgs(ctypes.Structure):
    _fields_ = (
        *((name, c_int32) for name in ("input", "output")),
        *((name, c_int64) for name in ("first", "second")),
    )


class RescaleArgs(ctypes.Structure):
    _fields_ = (
        *((name, c_int32) for name in ("tokens", "squares")),
        *((name, c_int64) for name in ("first", "second")),
        *((name, c_float) for name in ("first_count", "second_count")),
        ("weight", c_void_p),
        ("eps", c_float),
    )


class ChooseArgs(ctypes.Structure):
    _fields_ = (
        *((name, c_int32) for name in ("scoring", "scores", "choice")),
        *((name, c_int64) for name in ("num_experts", "num_chosen", "num_groups", "num_chosen_groups")),
        ("bias", c_void_p),
        ("is_normalized", c_int32),
        *((name, c_float) for name in ("scale", "jitter")),
    )


class GatherArgs(ctypes.Structure):
    _fields_ = (
        *((name, c_int32) for name in ("dtype", "choice", "input", "output")),
        *((name, c_int64) for name in ("num_experts", "num_chosen", "width")),
    )


class ExpertsArgs(ctypes.Structure):
    _fields_ = (
        *((name, c_int32) for name in ("dtype", "choice", "input", "output", "single")),
        *((name, c_int64) for name in ("num_experts", "num_chosen", "num_inputs", "num_outputs")),
        *((name, c_void_p) for name in ("weights", "biases")),
    )


class CombineArgs(ctypes.Structure):
    _fields_ = (
        *((name, c_int32) for name in ("choice", "input", "output", "shared", "gate")),
        *((name, c_int64) for name in ("num_experts", "num_chosen", "width")),
    )


class EmbedArgs(ctypes.Structure):
    _fields_ = (
        *((name, c_int32) for name in ("dtype", "ids", "output")),
        *((name, c_int64) for name in ("width", "first_id", "num_rows")),
        ("table", c_void_p),
        ("scale", c_float),
        ("adds", c_int32),
    )


class AddArgs(ctypes.Structure):
    _fields_ = (
        *((name, c_int32) for name in ("dtype", "first", "second", "output", "to_input")),
        ("width", c_int64),
        ("largest", c_float),
    )


class CacheShape(ctypes.Structure):
    _fields_ = (
        ("dtype", c_int32),
        *((name, c_int64) for name in ("block_size", "num_kv_heads", "head_dim")),
    )


class WriteArgs(ctypes.Structure):
    _fields_ = (
        ("cache", CacheShape),
        *((name, c_int32) for name in ("rows", "tokens")),
        ("num_heads", c_int64),
        ("positions", c_int32),
        ("rotary_dim", c_int64),
        ("rotation", c_void_p),
        ("norm", c_int32),
        *((name, c_void_p) for name in ("norm_weight", "norm_bias")),
        ("norm_eps", c_float),
        ("layer", c_void_p),
        ("scratch", c_int32),
    )


class AttendArgs(ctypes.Structure):
    _fields_ = (
        ("cache", CacheShape),
        *((name, c_int32) for name in ("rows", "queries", "output")),
        ("num_heads", c_int64),
        ("layer", c_void_p),
        *((name, c_float) for name in ("scale", "soft_cap")),
        ("is_causal", c_int32),
        ("window", c_int64),
        *((name, c_void_p) for name in ("alibi_slopes", "distance_bias")),
        ("max_distance", c_int64),
        ("sinks", c_void_p),
        ("scratch", c_int32),
    )


SIGNATURES = {
    "tgis_kernels": (c_void_p, c_char_p),
    "tgis_input_bytes": (c_int32, c_void_p, c_int32),
    "tgis_packed_bytes": (c_int64, c_void_p, c_int32, c_int64, c_int64),
    "tgis_pack": (c_int32, c_void_p, c_int32, c_void_p, c_int64, c_int64, c_int64, c_void_p, c_int32),
    "tgis_sample": (c_int32, c_void_p, c_void_p, c_int32),  # the structure is in engines/sampling/compiled.py
    "tgis_new_program": (c_void_p, c_void_p),
    "tgis_delete_program": (None, c_void_p),
    "tgis_block_bytes": (c_int64, c_void_p, POINTER(CacheShape)),
    "tgis_linear": (None, c_void_p, POINTER(LinearArgs)),
    "tgis_norm": (None, c_void_p, POINTER(NormArgs)),
    "tgis_activation": (None, c_void_p, POINTER(ActivationArgs)),
    "tgis_embed": (None, c_void_p, POINTER(EmbedArgs)),
    "tgis_add": (None, c_void_p, POINTER(AddArgs)),
    "tgis_write": (None, c_void_p, POINTER(WriteArgs)),
    "tgis_attend": (None, c_void_p, POINTER(AttendArgs)),
    "tgis_squares": (None, c_void_p, POINTER(SquaresArgs)),
    "tgis_rescale": (None, c_void_p, POINTER(RescaleArgs)),
    "tgis_choose": (None, c_void_p, POINTER(ChooseArgs)),
    "tgis_gather": (None, c_void_p, POINTER(GatherArgs)),
    "tgis_experts": (None, c_void_p, POINTER(ExpertsArgs)),
    "tgis_combine": (None, c_void_p, POINTER(CombineArgs)),
    "tgis_num_ops": (c_int64, c_void_p),
    "tgis_run": (c_int32, c_void_p, c_int64, c_int64, POINTER(Step)),
}


RETURN_NUMBERS = frozenset({"tgis_input_bytes"})  # and not the kind of a failure


def load(path: str) -> ctypes.CDLL:
    """Load a library and declare its functions.

    Raises:
        OSError: it cannot be loaded.
        AttributeError: it lacks a function.
    """
    check_whole(path)
    library = ctypes.CDLL(path)
    try:
        for name, (result, *arguments) in SIGNATURES.items():
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
            if result is c_int32 and name not in RETURN_NUMBERS:
                function.errcheck = raise_failure
    except AttributeError:
        _ctypes.dlclose(library._handle)  # otherwise, this file would be what is found when another has its name
        raise
    return library


def raise_failure(code: int, function: object, arguments: object) -> None:
    """Raise what a function of the library reports; see ``guard`` in ``program.cpp``."""
    if code == 1:
        raise MemoryError("too little memory for a compiled operation")
    assert code == 0, "a compiled operation failed"


def check_whole(path: str) -> None:
    """
    Raises:
        OSError: the end of the file is missing. Loading it might end this process with SIGBUS.
    """
    with open(path, "rb") as file:
        header, size = file.read(64), os.fstat(file.fileno()).st_size
    if header.startswith(b"\x7fELF") and len(header) == 64:
        (sections,) = struct.unpack_from("<Q", header, 40)
        section_bytes, num_sections = struct.unpack_from("<2H", header, 58)
        if size < sections + section_bytes * num_sections:  # linkers write them last
            raise OSError(f"{path} is truncated")
