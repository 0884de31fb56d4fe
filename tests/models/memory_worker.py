"""What loading a rank adds to a process of its own. Imports nothing large before it has started to measure."""

from __future__ import annotations

import multiprocessing
from multiprocessing.connection import Connection

from tgis_server.run import Run


def private_bytes() -> int:
    """Memory that belongs to this process alone."""
    with open("/proc/self/smaps_rollup") as file:
        return 1024 * sum(int(line.split()[1]) for line in file if line.startswith("Private_"))


def measure(connection: Connection, run: Run, rank: int) -> None:
    """Send what weights, then keys and values add, and how many blocks there are."""
    import torch

    from tgis_server.engines.native.ops import select_ops
    from tgis_server.engines.native.runner import NativeRunner

    torch.set_num_threads(1)
    select_ops(torch.device("cpu"), getattr(torch, run.dtype))  # what its first use allocates is no weight
    before = private_bytes()
    runner = NativeRunner.load(run, rank, lambda *_: None)
    loaded = private_bytes()
    with torch.inference_mode():
        for layer in runner._cache.layers:
            layer.fill_(1)
    connection.send((loaded - before, private_bytes() - loaded, runner.capacity.num_blocks))
    connection.recv()  # the other ranks may still need this one
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
