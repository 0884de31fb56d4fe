"""``config.json`` of a model directory, uninterpreted: only an engine knows what it means."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tgis_server.model_files import read_json


def read_model_config(model_dir: Path) -> dict[str, Any]:
    """
    Raises:
        ModelError: the file cannot be read, or is not a JSON object.
    """
    return read_json(model_dir / "config.json")
