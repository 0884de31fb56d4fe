"""The engines by name, each with its door and its properties. Imports no torch.

The command line and the launcher decide by an engine's properties, never by its name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tgis_server.engines.door import Door, ModelSummary
from tgis_server.errors import ModelError, UsageError


@dataclass(frozen=True, slots=True)
class Engine:
    """One engine, before any of its modules is imported."""

    name: str
    import_door: Callable[[], Door]
    computes: bool = True  # False: a rehearsal, without weights or a device
    tensor_parallel: bool = True  # divides one model among several shards
    adapters: frozenset[str] = frozenset()  # kinds of adapters that it can stage
    frameworks: tuple[str, ...] = ()  # values of --deployment-framework that select it

    @property
    def door(self) -> Door:
        return self.import_door()


def import_native_door() -> Door:
    from tgis_server.engines.native import door

    return door


def import_fake_door() -> Door:
    from tgis_server.engines.fake_door import FakeDoor

    return FakeDoor(lambda model_dir: find_engine(model_dir)[1])


NATIVE = Engine("native", import_native_door, frameworks=("tgis_native", "hf_custom_tp"))
REHEARSAL = Engine("fake", import_fake_door, computes=False, adapters=frozenset({"fake"}))
ENGINES: Mapping[str, Engine] = {engine.name: engine for engine in (NATIVE, REHEARSAL)}  # in order of preference
DEFAULT = NATIVE  # before a model is known


def get_engine(name: str) -> Engine:
    """The engine of that name.

    Raises:
        UsageError: there is no such engine.
    """
    if name not in ENGINES:
        raise UsageError(f"This version has no engine {name!r}, only {' and '.join(ENGINES)}.")
    return ENGINES[name]


def find_named(framework: str | None) -> Engine | None:
    """The engine that a value of --deployment-framework selects; ``None`` if this version has no such engine."""
    return next((engine for engine in ENGINES.values() if framework in engine.frameworks), None)


def find_engine(model_dir: Path, candidates: Iterable[Engine] = ENGINES.values()) -> tuple[Engine, ModelSummary]:
    """The first engine that serves a model, with its summary of config.json.

    Raises:
        ModelError: no engine serves it; the message gives the first engine's reason.
    """
    problems: list[ModelError] = []
    for engine in candidates:
        if engine.computes:
            try:
                return engine, engine.door.summarize(model_dir)
            except ModelError as error:
                problems.append(error)
    raise problems[0]
