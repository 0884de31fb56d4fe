"""``config.json`` of a model directory, as it stands; what it means to an engine is the engine's business."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tgis_server.errors import ModelError
from tgis_server.regular_file import read_regular


def read_model_config(model_dir: Path) -> dict[str, Any]:
    """The file as a dictionary.

    Raises:
        ModelError: it is not readable, or not an object.
    """
    file = model_dir / "config.json"
    try:
        config = json.loads(read_regular(file))
    except OSError as error:
        raise ModelError(f"{file} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise ModelError(f"{file} is not valid JSON: {error}. Download the model again.") from error
    if not isinstance(config, dict):
        raise ModelError(f"{file} holds no JSON object. Download the model again.")
    return config
