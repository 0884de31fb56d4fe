"""Marks GPU tests, and skips them if there is no CUDA device."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from tiny import Driver, load, make_checkpoint  # noqa: E402


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.gpu)
            if not torch.cuda.is_available():
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Make a random model; equal arguments share one."""
    made: dict[str, Path] = {}

    def make(model_type: str, **overrides: Any) -> Path:
        key = repr((model_type, sorted(overrides.items())))
        if key not in made:
            made[key] = make_checkpoint(tmp_path_factory.mktemp(model_type), model_type, **overrides)
        return made[key]

    return make


@pytest.fixture
def driver(tmp_path: Path) -> Callable[..., Driver]:
    """Load a checkpoint on a device into a driver."""

    def start(directory: Path, device: str = "cuda", **options: Any) -> Driver:
        return Driver(load(directory, tmp_path, device=device, **options))

    return start
