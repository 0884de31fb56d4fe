"""Compares the compiled operations of one instruction set with plain arithmetic on small inputs. Imports no torch.

    python -m tgis_server.engines.native.ops.cpu.self_test LIBRARY INSTRUCTION_SET

prints the operations that fail, as JSON. It runs as a process of its own, which an illegal instruction may kill.
"""

from __future__ import annotations

import ctypes
import json
import sys

import numpy as np

from tgis_server.engines.native.ops.cpu.interface import BFLOAT16, COLUMNS, FLOAT32, Buffer, LinearArgs, Step, load

NUM_THREADS = 2
TOLERANCES = {FLOAT32: 1e-5, BFLOAT16: 2e-5}  # of sums of about 1; products of bfloat16 are exact in float32
# Rows, inputs and outputs: one row and groups of rows, an odd number of inputs, blocks of columns that are not full.
LINEAR_SHAPES = ((1, 64, 32), (5, 37, 33), (29, 96, 100))


def run(library: ctypes.CDLL, name: str) -> list[str]:
    """The operations that fail."""
    kernels = library.tgis_kernels(name.encode())
    if not kernels:
        return [f"the library has no kernels for {name}"]
    failing = []
    if not all(is_linear_right(library, kernels, dtype, *shape) for dtype in TOLERANCES for shape in LINEAR_SHAPES):
        failing.append("linear")
    return failing


def is_linear_right(
    library: ctypes.CDLL, kernels: int, dtype: int, num_rows: int, num_inputs: int, num_outputs: int
) -> bool:
    random = np.random.default_rng(num_rows)
    x, weight, bias = (
        random.uniform(-1, 1, shape).astype(np.float32) / np.sqrt(num_inputs, dtype=np.float32)
        for shape in ((num_rows, num_inputs), (num_outputs, num_inputs), (num_outputs,))
    )
    x *= np.sqrt(num_inputs, dtype=np.float32)
    if dtype == BFLOAT16:
        x, weight = round_to_bf16(x), round_to_bf16(weight)
    expected = x.astype(np.float64) @ weight.T.astype(np.float64) + bias

    packed = np.zeros(library.tgis_packed_bytes(kernels, dtype, num_inputs, num_outputs), np.uint8)
    plain = encode(weight, dtype, 2 if dtype == BFLOAT16 else 4)
    library.tgis_pack(kernels, dtype, address(plain), num_inputs, num_inputs, num_outputs, address(packed), NUM_THREADS)
    given = encode(pad(x), dtype, library.tgis_input_bytes(kernels, dtype))
    result = np.full(pad(expected).shape, np.nan, np.float32)
    buffers = (Buffer * 2)(*(Buffer(address(array), array.strides[0]) for array in (given, result)))
    bias = pad(bias[None])[0]
    program = library.tgis_new_program(kernels)
    try:
        library.tgis_linear(program, LinearArgs(dtype, 0, 1, num_inputs, num_outputs, address(packed), address(bias)))
        library.tgis_run(program, 0, 1, Step(num_rows, NUM_THREADS, buffers, None))
    finally:
        library.tgis_delete_program(program)
    return np.allclose(result[:, :num_outputs], expected, rtol=0, atol=TOLERANCES[dtype])


def pad(array: np.ndarray) -> np.ndarray:
    """Columns up to a multiple of COLUMNS, of zeros."""
    return np.pad(array.astype(np.float32), ((0, 0), (0, -array.shape[1] % COLUMNS)))


def encode(array: np.ndarray, dtype: int, item_bytes: int) -> np.ndarray:
    """float32 values, which ``dtype`` represents, in elements of 2 or 4 bytes."""
    if dtype == BFLOAT16 and item_bytes == 2:
        return np.ascontiguousarray((array.view(np.uint32) >> 16).astype(np.uint16))
    return np.ascontiguousarray(array)


def round_to_bf16(array: np.ndarray) -> np.ndarray:
    """To nearest, ties to even."""
    bits = array.view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32)


def address(array: np.ndarray) -> int:
    return array.ctypes.data


if __name__ == "__main__":
    sys.stdout.write(json.dumps(run(load(sys.argv[1]), sys.argv[2])))
