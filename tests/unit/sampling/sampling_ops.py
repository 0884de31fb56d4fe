"""The implementations of the sampling operations that this machine can run, by name."""

from __future__ import annotations

import torch

from implementations import REFERENCE, load_library
from tgis_server.engines.sampling.api import SamplingOps
from tgis_server.engines.sampling.compiled import CompiledSampling
from tgis_server.engines.sampling.sampler import Sampler
from tgis_server.engines.sampling.staging import Staging
from tgis_server.engines.sampling.torch_ops import TorchSampling


def make_ops(name: str, vocab_size: int, num_threads: int = 2) -> SamplingOps:
    """The operations on a CPU."""
    if name == REFERENCE:
        return TorchSampling(vocab_size, Staging(torch.device("cpu")))
    library = load_library(name)
    return CompiledSampling(library, library.tgis_kernels(name.encode()), num_threads)


def make_sampler(name: str, vocab_size: int) -> Sampler:
    return Sampler(vocab_size, Staging(torch.device("cpu")), make_ops(name, vocab_size))
