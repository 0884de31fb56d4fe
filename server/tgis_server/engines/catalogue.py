"""The engines by name: what each can, and what it makes of a model's files before anything is loaded. No torch.

The command line and the launcher ask here and know no engine. Decisions ask what an engine can, never what it is
called. A new engine is an entry here, a module that is its :class:`Door`, and a line in ``load.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from tgis_server.engines.capabilities import RunnerCaps
from tgis_server.errors import ModelError, UsageError
from tgis_server.model_files import Length
from tgis_server.run import Run


@dataclass(frozen=True, slots=True)
class KvBudget:
    """What becomes of the memory beside weights and a step."""

    num_blocks: int
    max_sequence_length: int
    notes: tuple[str, ...] = ()


class RankMemory(Protocol):
    """What one rank of a run takes, in bytes, by the arithmetic with which it loads."""

    @property
    def weight_bytes(self) -> int:
        """As they are held, with copies that the device needs."""

    @property
    def step_bytes(self) -> int: ...

    @property
    def kv_bytes_per_token(self) -> int: ...

    def usable_gpu_bytes(self, free_bytes: int, total_bytes: int) -> int:
        """What the rank may take of a GPU."""

    def check(self, free_bytes: int) -> None:
        """
        Args:
            free_bytes: before loading.

        Raises:
            NotEnoughDevices: weights, a step and one sequence cannot fit.
        """

    def divide(self, free_bytes: int) -> KvBudget:
        """
        Args:
            free_bytes: beside the weights.

        Raises:
            NotEnoughDevices: one sequence does not fit.
        """


class ModelSizes(Protocol):
    """What a model whose files have been checked takes, divided among any valid number of shards."""

    def weight_bytes(self, rank: int, num_shard: int, dtype: str) -> int:
        """What ``rank`` reads, held as ``dtype``."""

    def kv_bytes_per_token(self, rank: int, num_shard: int, dtype: str) -> int: ...

    def rank_memory(self, run: Run, rank: int) -> RankMemory: ...

    def explain_cpu_pool(self, sequence_bytes: int, free_bytes: int) -> str:
        """What a shard on a CPU keeps for keys and values where no option says, for people.

        Args:
            sequence_bytes: of the longest one.
            free_bytes: for each shard.
        """


@dataclass(frozen=True, slots=True)
class ModelSummary:
    """A model as an engine would serve it."""

    kind: Literal["decoder", "encoder_decoder"]
    family: str
    layout: str  # layers, heads and the like, in words
    vocab_size: int  # 0: config.json does not tell
    length: Length | None  # None: config.json names none
    end_ids: tuple[int, ...]
    pad_id: int | None
    dtype: str | None  # of config.json, else of most weights once these have been looked at
    valid_num_shards: tuple[int, ...]  # empty: any number
    tensors: Mapping[str, tuple[int, ...]]  # that the engine reads, and their shapes
    warnings: tuple[str, ...] = ()
    sizes: ModelSizes | None = None  # None: the weights have not been looked at, or none are needed


class Door(Protocol):
    """A module in which an engine tells what it makes of files and machines. No torch."""

    def summarize(self, model_dir: Path, num_shard: int = 1) -> ModelSummary:
        """What config.json tells.

        Raises:
            ModelError: the engine does not serve the model.
            UsageError: ``num_shard`` does not divide it.
        """

    def inspect(self, model_dir: Path, num_shard: int) -> ModelSummary:
        """What config.json and the headers of the weights tell, all that a start needs checked.

        Raises:
            ModelError, UsageError: as :meth:`summarize`; weights are missing, damaged, or of another model.
        """

    def cpu_environment(self, environ: Mapping[str, str]) -> dict[str, str]:
        """What a shard on a CPU wants in its environment, unless ``environ`` says otherwise."""


@dataclass(frozen=True, slots=True)
class Engine:
    """One engine, before anything of it is imported."""

    name: str
    import_door: Callable[[], Door]
    caps: RunnerCaps  # all that its runners can; model and device may allow less
    computes: bool = True  # with weights, on a device; otherwise what it serves is a rehearsal
    tensor_parallel: bool = True  # one model among several shards
    frameworks: tuple[str, ...] = ()  # values of --deployment-framework that mean it

    @property
    def door(self) -> Door:
        return self.import_door()


def import_native_door() -> Door:
    from tgis_server.engines.native import door

    return door


def import_fake_door() -> Door:
    from tgis_server.engines import fake_door

    return fake_door


NATIVE = Engine("native", import_native_door, RunnerCaps(plan_ahead=True), frameworks=("tgis_native", "hf_custom_tp"))
FAKE_CAPS = RunnerCaps(plan_ahead=True, adapters=frozenset({"fake"}))
FAKE = Engine("fake", import_fake_door, FAKE_CAPS, computes=False)
ENGINES: Mapping[str, Engine] = {engine.name: engine for engine in (NATIVE, FAKE)}  # in the order of preference
DEFAULT = NATIVE  # where no model tells
REHEARSAL = FAKE


def get_engine(name: str) -> Engine:
    """
    Raises:
        UsageError: there is none of that name.
    """
    if name not in ENGINES:
        raise UsageError(f"There is no engine {name!r} in this version, only {' and '.join(ENGINES)}.")
    return ENGINES[name]


def find_named(framework: str | None) -> Engine | None:
    """The engine that a value of --deployment-framework means; ``None``: none of this version."""
    return next((engine for engine in ENGINES.values() if framework in engine.frameworks), None)


def find_engine(model_dir: Path, candidates: Iterable[Engine] = ENGINES.values()) -> tuple[Engine, ModelSummary]:
    """The first engine that serves a model, and what it makes of config.json.

    Raises:
        ModelError: none does; the text says why the first one does not.
    """
    problems: list[ModelError] = []
    for engine in candidates:
        if engine.computes:
            try:
                return engine, engine.door.summarize(model_dir)
            except ModelError as error:
                problems.append(error)
    raise problems[0]
