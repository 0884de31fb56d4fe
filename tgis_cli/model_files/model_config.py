"""``config.json`` of a model directory, as it stands; what it means to an engine is the engine's business."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tgis_server.model_files import read_json


def read_model_config(model_dir: Path) -> dict[str, Any]:
    """The file as a dictionary.

    Raises:
        ModelError: it is not readable, or not an object.
    """
    return read_json(model_dir / "config.json")
