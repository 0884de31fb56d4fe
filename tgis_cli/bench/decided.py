"""What a launch would decide, for benchmarks that start its processes themselves."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tgis_cli.launch.forked_work import Activity
from tgis_cli.launch.prepare import survey
from tgis_server.engines.catalogue import get_engine
from tgis_server.engines.door import ModelSummary
from tgis_server.errors import TgisError
from tgis_server.options import LoadedConfig
from tgis_server.run import Run


@dataclass(frozen=True, slots=True)
class Decided:
    """A run, and what its model's files say."""

    run: Run
    summary: ModelSummary
    given: dict[str, str]  # the options of the server that are not defaults
    warnings: tuple[str, ...]

    def describe_model(self) -> dict[str, Any]:
        return {
            "name": self.run.model_id,
            "family": self.summary.family,
            "layout": self.summary.layout,
            "engine": self.run.engine,
            "dtype": self.run.dtype,
            "device": self.run.device,
            "num_shard": self.run.num_shard,
            "shard_threads": self.run.shard_threads,
        }


def decide(loaded: LoadedConfig, environ: Mapping[str, str], run_dir: Path) -> Decided:
    """Inspect the machine and the model, and check both, as at a launch.

    Raises:
        TgisError: the reason why the model cannot be served here.
    """
    surveyed = survey(loaded, environ, run_dir, Activity())
    run = surveyed.run
    given = {name: str(fact["value"]) for name, fact in loaded.as_dict().items() if fact["origin"] != "default"}
    summary = get_engine(run.engine).door.inspect(run.model_dir, run.num_shard)
    return Decided(run, summary, given, surveyed.resolved.warnings)


@contextlib.contextmanager
def private_run_dir() -> Iterator[Path]:
    """A run directory that no command takes for a server's. It is kept if an error names a file in it."""
    run_dir = Path(tempfile.mkdtemp(prefix="tbench-")).resolve()
    (run_dir / "errors").mkdir()
    is_named = False
    try:
        yield run_dir
    except TgisError as error:
        is_named = str(run_dir) in str(error)
        raise
    finally:
        if not is_named:
            shutil.rmtree(run_dir, ignore_errors=True)
