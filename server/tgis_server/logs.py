"""Logging of one process: text or JSON lines on stderr, each with time, level and process.

The launcher puts its children's lines on its own output; children therefore write lines without colour, and as JSON
where the launcher writes JSON. Prompts and outputs are never logged above debug.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Any

# attributes that every record has; what a caller passes as extra={...} comes on top and becomes a JSON field
STANDARD_FIELDS = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def setup_logging(process: str, *, level: str, as_json: bool) -> None:
    """Configure the root logger of this process. ``process`` is a name such as ``front-end`` or ``shard-0``."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter(process) if as_json else TextFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.getLogger("asyncio").setLevel(max(logging.WARNING, logging.root.level))


def extra_fields(record: logging.LogRecord) -> dict[str, Any]:
    return {key: value for key, value in vars(record).items() if key not in STANDARD_FIELDS}


class TextFormatter(logging.Formatter):
    """``12:30:01.250 info message key=value``; the launcher adds the process name in front."""

    def format(self, record: logging.LogRecord) -> str:
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        fields = "".join(f" {key}={value}" for key, value in extra_fields(record).items())
        line = f"{clock}.{int(record.msecs):03d} {record.levelname.lower()} {record.getMessage()}{fields}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class JsonFormatter(logging.Formatter):
    """One JSON object per line; a traceback is a field, never a line of its own."""

    def __init__(self, process: str) -> None:
        super().__init__()
        self.process = process

    def format(self, record: logging.LogRecord) -> str:
        clock = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, Any] = {
            "time": f"{clock}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "process": self.process,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line | extra_fields(record), default=str, ensure_ascii=False)
