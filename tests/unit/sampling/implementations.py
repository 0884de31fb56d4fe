"""The implementations of the sampling operations that this machine can run, by name.

The library is compiled once per process, in a directory that is removed when the process ends.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import pytest
import torch

from tgis_server.engines.native import ops
from tgis_server.engines.sampling.api import SamplingOps
from tgis_server.engines.sampling.compiled import CompiledSampling
from tgis_server.engines.sampling.sampler import Sampler
from tgis_server.engines.sampling.staging import Staging
from tgis_server.engines.sampling.torch_ops import TorchSampling
from tgis_server.host.cpu_flags import read_cpu_flags

SOURCES = Path(ops.__file__).parent / "cpu/csrc"
FLAGS = ["-O2", "-std=c++17", "-fPIC", "-fno-math-errno", "-ffp-contract=off", "-w"]
SETS = {
    "avx512": "-mavx512f -mavx512bw -mavx512vl -mavx512dq -mfma",
    "avx2": "-mavx2 -mfma",
}
COMPILER = os.environ.get("CXX") or shutil.which("c++")


def can_run(name: str) -> bool:
    return {option.removeprefix("-m") for option in SETS[name].split()} <= (read_cpu_flags() or set())


COMPILED = [
    pytest.param(name, marks=pytest.mark.skipif(not (COMPILER and can_run(name)), reason="no compiler or no such CPU"))
    for name in SETS
]
ALL = ["torch", *COMPILED]


def make_ops(name: str, vocab_size: int, num_threads: int = 2) -> SamplingOps:
    """The operations on a CPU. "torch", or an instruction set."""
    if name == "torch":
        return TorchSampling(vocab_size, Staging(torch.device("cpu")))
    library = load_library()
    kernels = library.tgis_kernels(name.encode())
    assert kernels, f"the library has no kernels for {name}"
    return CompiledSampling(library, kernels, num_threads)


def make_sampler(name: str, vocab_size: int) -> Sampler:
    return Sampler(vocab_size, Staging(torch.device("cpu")), make_ops(name, vocab_size))


@cache
def load_library() -> ctypes.CDLL:
    directory = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    sources = {name: ["kernels.cpp", f"-DTGIS_ISA={name}", *SETS[name].split()] for name in SETS if can_run(name)}
    sources |= {"program": ["program.cpp"], "team": ["team.cpp"]}
    compilers = [
        subprocess.Popen([str(COMPILER), *FLAGS, *source, "-c", "-o", directory / f"{name}.o"], cwd=SOURCES)
        for name, source in sources.items()
    ]
    assert [compiler.wait() for compiler in compilers] == [0] * len(compilers)
    path = directory / "libtgis_cpu.so"
    subprocess.run([str(COMPILER), "-shared", "-pthread", "-o", path, *directory.glob("*.o")], check=True)
    library = ctypes.CDLL(str(path))
    library.tgis_kernels.argtypes, library.tgis_kernels.restype = [ctypes.c_char_p], ctypes.c_void_p
    return library
