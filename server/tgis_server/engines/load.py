"""Loads the runner of a named engine. Called by a shard; imports torch if the engine needs it."""

from __future__ import annotations

from tgis_server.engines.api import ModelRunner, Progress
from tgis_server.engines.catalogue import get_engine
from tgis_server.run import Run


def load_runner(run: Run, rank: int, progress: Progress) -> ModelRunner:
    """Load the run's engine on this rank.

    Raises:
        UsageError: there is no such engine.
        ModelError: files are missing or truncated, tensors have the wrong shape, or no engine serves the architecture.
        NotEnoughDevices: the weights and one sequence do not fit.
    """
    match get_engine(run.engine).name:
        case "fake":
            from tgis_server.engines.fake import FakeRunner

            return FakeRunner.load(run, rank, progress)
        case "native":
            from tgis_server.engines.native.runner import NativeRunner

            return NativeRunner.load(run, rank, progress)
        case name:
            raise NotImplementedError(f"load.py has no case for engine {name} of the catalogue")
