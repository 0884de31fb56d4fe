"""From the name of an engine to a loaded runner. Called by a shard; imports torch where the engine needs it."""

from __future__ import annotations

from tgis_server.engines.api import ModelRunner, Progress
from tgis_server.engines.catalogue import get_engine
from tgis_server.run import Run


def load_runner(run: Run, rank: int, progress: Progress) -> ModelRunner:
    """Load the engine that the run names, on this rank.

    Raises:
        UsageError: there is no such engine.
        ModelError: files missing, truncated, of a wrong shape, or an architecture without an engine.
        NotEnoughDevices: weights plus one sequence do not fit.
    """
    match get_engine(run.engine).name:
        case "fake":
            from tgis_server.engines.fake import FakeRunner

            return FakeRunner.load(run, rank, progress)
        case "native":
            from tgis_server.engines.native.runner import NativeRunner

            return NativeRunner.load(run, rank, progress)
        case name:
            raise NotImplementedError(f"the catalogue has an engine {name} that nothing here loads")
