"""The implementations of ``Ops`` that this machine can run."""

from __future__ import annotations

import ctypes
import functools
import shutil

import pytest
import torch

from tgis_server.engines.native.ops.api import Ops
from tgis_server.engines.native.ops.cpu.instruction_sets import AUTO, REFERENCE, choose_sets
from tgis_server.engines.native.ops.cpu.library import open_library
from tgis_server.engines.native.ops.cpu.ops import CpuOps
from tgis_server.engines.native.ops.reference import TorchOps

COMPILED = [each.name for each in choose_sets(AUTO)]
IMPLEMENTATIONS = [REFERENCE, *COMPILED]


@functools.cache
def make_ops(name: str, dtype: torch.dtype = torch.float32) -> Ops:
    if name == REFERENCE:
        return TorchOps(torch.device("cpu"), dtype)
    return CpuOps(load_library(name), name, dtype)


@functools.cache
def load_library(name: str) -> ctypes.CDLL:
    """The library, whose kernels of this name work."""
    opened = open_library(lambda *_: None, choice=name)
    if opened.cdll is None and shutil.which("c++") is None:
        pytest.skip(opened.why)
    assert opened.cdll is not None, opened.why
    assert opened.kernels == name
    return opened.cdll
