"""Measures the memory that loading a rank adds to a separate process. Imports nothing large beforehand."""

from __future__ import annotations

import multiprocessing
from multiprocessing.connection import Connection

from tgis_server.run import Run


def private_bytes() -> int:
    """Private memory of this process."""
    with open("/proc/self/smaps_rollup") as file:
        return 1024 * sum(int(line.split()[1]) for line in file if line.startswith("Private_"))


def measure(connection: Connection, run: Run, rank: int) -> None:
    """Send the bytes that weights add, those that keys and values add, and the number of blocks."""
    import torch

    from tgis_server.engines.native.ops import select_ops
    from tgis_server.engines.native.runner import NativeRunner

    torch.set_num_threads(1)
    # Its first use allocates memory, too.
    select_ops(torch.device("cpu"), getattr(torch, run.dtype), run.config.cpu_ops, lambda *_: None)
    before = private_bytes()
    runner = NativeRunner.load(run, rank, lambda *_: None)
    loaded = private_bytes()
    with torch.inference_mode():
        for layer in runner._cache.layers:
            layer.fill_(1)
    connection.send((loaded - before, private_bytes() - loaded, runner.capacity.num_blocks))
    connection.recv()  # other ranks may still need this one
    runner.close()


def measure_ranks(run: Run) -> list[tuple[int, int, int]]:
    """(weights, keys and values, blocks) of each rank."""
    context = multiprocessing.get_context("spawn")
    ends, processes = [], []
    for rank in range(run.num_shard):
        ours, theirs = context.Pipe()
        process = context.Process(target=measure, args=(theirs, run, rank), daemon=True)
        process.start()
        theirs.close()
        ends.append(ours)
        processes.append(process)
    found = [end.recv() for end in ends]
    for end, process in zip(ends, processes, strict=True):
        end.send(None)
        process.join(30)
    return found
