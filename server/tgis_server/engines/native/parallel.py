"""Tensor parallelism: the ranks of one model and their collectives.

Ranks hold slices of every linear layer (Megatron-LM, arXiv:1909.08053). They exchange two sums per layer, one for the
embedding, and the logits, which rank 0 collects. torch's default process group is not used, so one process can hold
several models. Every rank calls the collectives of a group in the same order, which depends on the plan alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import FileStore, PrefixStore, Store

from tgis_server import failures


class Group(Protocol):
    """The ranks of one model."""

    rank: int
    size: int

    def add(self, tensor: Tensor) -> Tensor:
        """Sum over ranks, in place; returns ``tensor``."""
        ...

    def smallest(self, value: int) -> int:
        """Smallest of the ranks' values, on every rank. Waits for all ranks; used while loading."""
        ...

    def collect(self, tensor: Tensor) -> list[Tensor] | None:
        """All ranks' tensors in rank order on rank 0; ``None`` elsewhere."""
        ...

    def share(self, tensor: Tensor) -> Tensor:
        """Copy rank 0's tensor to every rank, in place; returns ``tensor``."""
        ...

    def close(self) -> None: ...


class SoloGroup:
    """A single rank, which holds the whole model."""

    rank = 0
    size = 1

    def add(self, tensor: Tensor) -> Tensor:
        return tensor

    def smallest(self, value: int) -> int:
        return value

    def collect(self, tensor: Tensor) -> list[Tensor] | None:
        return [tensor]

    def share(self, tensor: Tensor) -> Tensor:
        return tensor

    def close(self) -> None:
        pass


class ShardGroup:
    """Several ranks over gloo (CPU) or NCCL (CUDA)."""

    def __init__(self, backend: Any, rank: int, size: int, device: torch.device) -> None:
        self.rank = rank
        self.size = size
        self._backend = backend
        self._device = device
        self._from_first = dist.BroadcastOptions()
        self._from_first.rootRank = 0
        self._from_first.rootTensor = 0
        self._to_first = dist.GatherOptions()
        self._to_first.rootRank = 0
        self._minimum = dist.AllreduceOptions()
        self._minimum.reduceOp = dist.ReduceOp(dist.ReduceOp.MIN)

    @classmethod
    def join(cls, rendezvous_file: Path, rank: int, size: int, device: torch.device, timeout_s: float) -> ShardGroup:
        """Join the other ranks through a file in the run directory.

        Raises:
            PeerLost: they did not join within ``timeout_s``, or one of them has ended.
        """
        with _peer_errors():
            store = FileStore(str(rendezvous_file), size)
            store.set_timeout(timedelta(seconds=timeout_s))
            prefixed = PrefixStore("tensor-parallel", store)
            backend = (_join_nccl if device.type == "cuda" else _join_gloo)(prefixed, rank, size, timeout_s)
            group = cls(backend, rank, size, device)
            group.smallest(0)  # connects now, so that an unreachable peer is found before weights are read
        return group

    def add(self, tensor: Tensor) -> Tensor:
        with _peer_errors():
            self._backend.allreduce([tensor]).wait()
        return tensor

    def smallest(self, value: int) -> int:
        tensor = torch.tensor([value], device=self._device)
        with _peer_errors():
            self._backend.allreduce([tensor], self._minimum).wait()
            return int(tensor.item())

    def collect(self, tensor: Tensor) -> list[Tensor] | None:
        parts = [torch.empty_like(tensor) for _ in range(self.size)] if self.rank == 0 else []
        with _peer_errors():
            self._backend.gather([parts] if parts else [], [tensor.contiguous()], self._to_first).wait()
        return parts or None

    def share(self, tensor: Tensor) -> Tensor:
        with _peer_errors():
            self._backend.broadcast([tensor], self._from_first).wait()
        return tensor

    def close(self) -> None:
        if self._device.type == "cuda":
            # After a failure a peer may hang in a collective: do not wait for it.
            self._backend.abort()


def _join_gloo(store: Store, rank: int, size: int, timeout_s: float) -> Any:
    # torch's type stubs lack these classes.
    options: Any = dist.ProcessGroupGloo._Options()  # type: ignore[attr-defined]
    # All ranks are on one machine: loopback works whatever the host name resolves to.
    options._devices = [dist.ProcessGroupGloo.create_device(interface="lo")]
    options._timeout = timedelta(seconds=timeout_s)
    backend: Any = dist.ProcessGroupGloo(store, rank, size, options)
    return backend


def _join_nccl(store: Store, rank: int, size: int, timeout_s: float) -> Any:
    options: Any = dist.ProcessGroupNCCL.Options()
    options._timeout = timedelta(seconds=timeout_s)
    backend: Any = dist.ProcessGroupNCCL(store, rank, size, options)
    return backend


@contextmanager
def _peer_errors() -> Iterator[None]:
    """Turn a failed collective into ``PeerLost``: its error rarely says more than that another rank has ended."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, dist.DistError) as error:
        cause = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise failures.COLLECTIVE_LOST.error(reason=cause) from error
