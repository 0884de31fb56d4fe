"""Checkpoints, oracles and follower processes for the model tests."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from shard_worker import Followers
from tgis_server.engines.native.runner import NativeRunner
from tiny import Driver, Model, Oracle, load, make_checkpoint, make_run, no_progress


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Tiny models gain nothing from threads, and tests with several processes would slow down."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Model]:
    """Make a random checkpoint and its oracle; equal arguments share one."""
    made: dict[str, Model] = {}

    def make(model_type: str = "llama", seed: int = 0, **overrides: Any) -> Model:
        key = repr((model_type, seed, sorted(overrides.items())))
        if key not in made:
            directory = make_checkpoint(tmp_path_factory.mktemp(model_type), model_type, seed, **overrides)
            made[key] = Model(directory, Oracle(directory))
        return made[key]

    return make


@pytest.fixture
def driver(tmp_path: Path) -> Callable[..., Driver]:
    """Load a model into a driver."""

    def start(model: Model, **options: Any) -> Driver:
        return Driver(load(model.directory, tmp_path, **options))

    return start


@pytest.fixture(scope="session")
def followers() -> Iterator[Followers]:
    """Processes for ranks 1 to 3."""
    processes = Followers(3)
    yield processes
    processes.close()


@pytest.fixture
def shards(followers: Followers, tmp_path: Path) -> Iterator[Callable[..., tuple[Driver, list[Any]]]]:
    """Load a model on several ranks; this process is rank 0. Returns a driver and each rank's (facts, capacity)."""
    numbers = itertools.count()
    runners = []

    def start(model: Model, num_shard: int, others: Model | None = None, **options: Any) -> tuple[Driver, list[Any]]:
        run_dir = tmp_path / f"run{next(numbers)}"
        run_dir.mkdir()
        run = make_run(model.directory, run_dir, num_shard=num_shard, **options)
        other = make_run((others or model).directory, run_dir, num_shard=num_shard, **options)
        followers.start_loading([other] * (num_shard - 1))
        runner = NativeRunner.load(run, 0, no_progress)
        runners.append(runner)
        loaded = [(runner.facts, runner.capacity), *followers.finish_loading()]
        return Driver(runner, followers), loaded

    yield start
    for runner in runners:
        runner.close()
