"""The resolved configuration of one run, which the launcher passes to every child as one file.

Nothing is inferred here: ``tgis_cli`` resolves model, engine, device, dtype and limits, and writes ``serve.json`` into
the run directory; the children read it back.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from tgis_server.options import ServeConfig, options
from tgis_server.words.processes import shard_name

FILE = "serve.json"  # in the run directory


@dataclass(frozen=True, slots=True)
class Run:
    """Everything that the front-end and the shards need to know, with inferred values for options that are not set."""

    config: ServeConfig
    run_dir: Path
    model_id: str  # as the user wrote it; "demo" for the embedded model
    model_dir: Path  # with config.json, *.safetensors and tokenizer.json
    engine: str  # a name in ``engines/catalogue.py``
    device: str  # "cpu" or "cuda"
    dtype: str  # "float32", "bfloat16" or "float16"
    num_shard: int
    max_sequence_length: int  # configured, or the model's own
    is_max_sequence_length_explicit: bool  # explicit: must fit; inferred: may be lowered to what fits
    max_batch_tokens: int
    tokenization_workers: int
    cpu_ops: str = ""  # the instruction set of compiled operations, or "reference", as foreseen; empty: no CPU computes
    shard_threads: int = 0  # compute threads of each shard; 0 = torch's default
    gpus: tuple[str, ...] = ()  # one per shard, for CUDA_VISIBLE_DEVICES: UUIDs, which do not depend on an order
    shard_cpus: tuple[tuple[int, ...], ...] = ()  # CPUs of each shard; empty = not pinned
    launcher_phases: tuple[tuple[str, float], ...] = ()  # phases before the children started, and their start times
    label: str = ""  # "demo model" or "rehearsal"; shown when ready, and in logs and metrics

    def shard_socket(self, rank: int) -> Path:
        if self.config.shard_uds_path:
            return Path(f"{self.config.shard_uds_path}-{rank}")
        return self.run_dir / f"{shard_name(rank)}.sock"

    @property
    def frontend_socket(self) -> Path:
        """Where the launcher checks the front-end's health."""
        return self.run_dir / "frontend.sock"

    @property
    def plan_socket(self) -> Path:
        """Where the leader sends plans to the followers."""
        return self.run_dir / "plan.sock"

    @property
    def control_socket(self) -> Path:
        """The control channel between leader and followers."""
        return self.run_dir / "control.sock"

    @property
    def sockets(self) -> list[Path]:
        """All sockets of this run."""
        shards = [self.shard_socket(rank) for rank in range(self.num_shard)]
        return [self.frontend_socket, self.plan_socket, self.control_socket, *shards]

    @property
    def rendezvous_file(self) -> Path:
        """The file store of torch.distributed."""
        return self.run_dir / "rendezvous"

    @property
    def errors_dir(self) -> Path:
        """Each child writes its uncaught error here, where the launcher finds the root cause."""
        return self.run_dir / "errors"

    @property
    def file(self) -> Path:
        return self.run_dir / FILE

    def save(self) -> None:
        """Write ``serve.json`` for the children, without credentials."""
        write_values(self.file, asdict(self), self.config)

    @classmethod
    def read(cls, file: Path, environ: Mapping[str, str]) -> Run:
        """Read what :meth:`save` wrote; options that may contain credentials come from ``environ``."""
        raw: dict[str, Any] = json.loads(file.read_text())
        values = raw.pop("config")
        for option in options():
            if option.type is Path and values[option.name] is not None:
                values[option.name] = Path(values[option.name])
            elif option.opt.has_credentials:
                values[option.name] = environ.get(option.env)
        for name in (f.name for f in fields(cls) if f.type == "Path"):
            raw[name] = Path(raw[name])
        raw["launcher_phases"] = tuple((name, started_at) for name, started_at in raw["launcher_phases"])
        raw["gpus"] = tuple(raw["gpus"])
        raw["shard_cpus"] = tuple(tuple(cpus) for cpus in raw["shard_cpus"])
        return cls(config=ServeConfig(**values), **raw)


def save_unresolved(run_dir: Path, config: ServeConfig) -> None:
    """Write the part of ``serve.json`` that is known before the launcher has looked at the machine and the model."""
    label = "rehearsal" if config.rehearse else ""
    values = {"model_id": config.model_name or "demo", "label": label, "num_shard": 0}
    write_values(run_dir / FILE, values, config)


def write_values(file: Path, values: Mapping[str, Any], config: ServeConfig) -> None:
    shown = {option.name: option.get_shown(config) for option in options()}
    new = file.with_suffix(".new")
    new.write_text(json.dumps({**values, "config": shown}, default=str, indent=1))
    new.replace(file)  # at once, as `tgis stop` may be reading the file
