"""JSON files that come with a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tgis_server import failures
from tgis_server.host.regular_file import read_regular
from tgis_server.model_files.stand_ins import BEGINNING_BYTES, refuse_stand_in


def read_json(file: Path) -> dict[str, Any]:
    """Read a JSON object from a file of the model.

    Raises:
        ModelError: the file cannot be read, or is not a JSON object.
    """
    try:
        raw = read_regular(file)
    except OSError as error:
        raise failures.JSON_UNREADABLE.error(file=file, reason=error.strerror) from error
    return parse_json(raw, str(file))


def parse_json(text: str | bytes, file: str) -> dict[str, Any]:
    """Like :func:`read_json`, from a file's text.

    Args:
        file: name for error messages.
    """
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raw = text.encode(errors="replace") if isinstance(text, str) else text
        refuse_stand_in(file, raw[:BEGINNING_BYTES])
        raise failures.JSON_BROKEN.error(file=file, reason=error) from error
    if not isinstance(values, dict):
        raise failures.JSON_NO_OBJECT.error(file=file, found=type(values).__name__)
    return values
