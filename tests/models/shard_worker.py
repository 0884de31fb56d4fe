"""A follower rank in a separate process: loads models and executes plans on request, like a shard."""

from __future__ import annotations

import multiprocessing
from multiprocessing.connection import Connection
from typing import Any

from tgis_server.run import Run
from tgis_server.wire.messages import StepPlan


def follow(connection: Connection) -> None:
    """Load models and execute plans until the other end closes."""
    import torch

    from tgis_server.engines.native.runner import NativeRunner

    torch.set_num_threads(1)
    runner: NativeRunner | None = None
    while True:
        try:
            message = connection.recv()
        except EOFError:
            return
        if isinstance(message, StepPlan):
            assert runner is not None
            runner.finish(runner.launch(message), None)
        else:
            run, rank = message
            runner = NativeRunner.load(run, rank, lambda *_: None)
            connection.send((runner.facts, runner.capacity))


class Followers:
    """Processes for ranks 1 and up, started once and reused for several models."""

    def __init__(self, count: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._ends: list[Connection] = []
        self._processes = []
        for _ in range(count):
            ours, theirs = context.Pipe()
            process = context.Process(target=follow, args=(theirs,), daemon=True)
            process.start()
            theirs.close()
            self._ends.append(ours)
            self._processes.append(process)

    def start_loading(self, runs: list[Run]) -> None:
        """Have rank i + 1 load ``runs[i]``, while the caller loads rank 0."""
        self._active = self._ends[: len(runs)]
        for i, run in enumerate(runs):
            self._active[i].send((run, i + 1))

    def finish_loading(self) -> list[Any]:
        """(facts, capacity) of each rank."""
        return [end.recv() for end in self._active]

    def __call__(self, plan: StepPlan) -> None:
        for end in self._active:
            end.send(plan)

    def close(self) -> None:
        for end in self._ends:
            end.close()
        for process in self._processes:
            process.join(10)
