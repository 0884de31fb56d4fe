"""One run of the server: the resolved configuration that the launcher hands to every child as one file.

Nothing here is inferred: ``tgis_cli`` resolves model, engine, device, dtype and limits, writes ``serve.json`` into the
run directory, and the children read it back. Paths of sockets are derived from the run directory.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from tgis_server.options import ServeConfig, options
from tgis_server.words.processes import shard_name


@dataclass(frozen=True, slots=True)
class Run:
    """Everything that front-end and shards need to know. Options that may be ``None`` in ServeConfig are filled in."""

    config: ServeConfig
    run_dir: Path
    model_id: str  # as the user wrote it; "demo" for the embedded model
    model_dir: Path  # holds config.json, *.safetensors and tokenizer.json
    engine: str  # a name of ``engines/catalogue.py``
    device: str  # "cpu" or "cuda"
    dtype: str  # "float32", "bfloat16" or "float16"
    num_shard: int
    max_sequence_length: int  # configured, or the model's own
    is_max_sequence_length_explicit: bool  # explicit: must fit; inferred: may be lowered to what fits
    max_batch_tokens: int
    tokenization_workers: int
    shard_threads: int = 0  # compute threads of each shard; 0 = torch's default
    gpus: tuple[str, ...] = ()  # one for each shard, as CUDA_VISIBLE_DEVICES names it: UUIDs mean the same in any order
    shard_cpus: tuple[tuple[int, ...], ...] = ()  # CPUs of each shard; empty = wherever the kernel likes
    launcher_phases: tuple[tuple[str, float], ...] = ()  # what it did before it started children, and from when on
    label: str = ""  # "demo model" or "rehearsal": named in readiness, logs and metrics

    def shard_socket(self, rank: int) -> Path:
        if self.config.shard_uds_path:
            return Path(f"{self.config.shard_uds_path}-{rank}")
        return self.run_dir / f"{shard_name(rank)}.sock"

    @property
    def frontend_socket(self) -> Path:
        """Where the launcher asks the front-end for its health."""
        return self.run_dir / "frontend.sock"

    @property
    def plan_socket(self) -> Path:
        """Where the leader hands plans to the followers."""
        return self.run_dir / "plan.sock"

    @property
    def control_socket(self) -> Path:
        """Where the leader asks the followers for what they do beside steps."""
        return self.run_dir / "control.sock"

    @property
    def sockets(self) -> list[Path]:
        """All that the processes of this run make."""
        shards = [self.shard_socket(rank) for rank in range(self.num_shard)]
        return [self.frontend_socket, self.plan_socket, self.control_socket, *shards]

    @property
    def rendezvous_file(self) -> Path:
        """File store of torch.distributed."""
        return self.run_dir / "rendezvous"

    @property
    def errors_dir(self) -> Path:
        """Each child writes its uncaught error here; the launcher reads the first cause from it."""
        return self.run_dir / "errors"

    @property
    def file(self) -> Path:
        return self.run_dir / "serve.json"

    def save(self) -> None:
        """Write ``serve.json`` for the children, without credentials."""
        values = asdict(self) | {"config": {option.name: option.get_shown(self.config) for option in options()}}
        self.file.write_text(json.dumps(values, default=str, indent=1))

    @classmethod
    def read(cls, file: Path, environ: Mapping[str, str]) -> Run:
        """Read what :meth:`save` wrote; ``environ`` has the options that may hold credentials."""
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
