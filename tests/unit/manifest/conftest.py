from __future__ import annotations

from pathlib import Path

import pytest

from manifests import write_cache


@pytest.fixture(scope="session")
def environ(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """With a cache that has the model."""
    cache_dir: Path = tmp_path_factory.mktemp("hub")
    write_cache(cache_dir)
    return {"HF_HUB_CACHE": str(cache_dir)}
