"""Logging of one process: one JSON line on stderr per record.

Children always write JSON: a record with its traceback is a single line, and no text in it can pass for another line.
The launcher forwards the lines, or turns them into text with :func:`text_of`. Prompts and outputs are logged at debug
level only.
"""

from __future__ import annotations

import json
import logging
import sys
import threading
import time
import warnings
from collections.abc import Mapping
from typing import Any

from tgis_server.words.control_characters import CONTROLS
from tgis_server.words.processes import rank_of

# Attributes of every record; others, which a caller adds with extra={...}, become fields.
STANDARD_FIELDS = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
# Not shown as key=value in text.
ENVELOPE = frozenset({"time", "level", "process", "rank", "event", "message", "traceback"})

# In a log line, a line end is escaped as well: no text can pass for another line.
UNSAFE = CONTROLS | {ord("\n"): "\\n"}


def setup_logging(process: str, *, level: str) -> None:
    """Configure the root logger of this process, including Python's warnings and uncaught errors of threads.

    Args:
        process: ``frontend`` or ``shard-0``.
    """
    setup_handler(logging.StreamHandler(sys.stderr), process, level=level)
    threading.excepthook = log_thread_error


def setup_handler(handler: logging.Handler, process: str, *, level: str) -> None:
    """Make ``handler`` the only handler, for all records and Python's warnings."""
    handler.setFormatter(JsonFormatter(process))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.getLogger("asyncio").setLevel(max(logging.WARNING, logging.root.level))
    warnings.formatwarning = format_warning
    logging.captureWarnings(capture=True)


def format_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    return f"{filename}:{lineno}: {category.__name__}: {message}"


def log_thread_error(args: threading.ExceptHookArgs) -> None:
    if isinstance(args.exc_value, Exception):  # not SystemExit
        name = args.thread.name if args.thread else "of unknown name"
        logging.getLogger(__name__).error("Thread %s failed.", name, exc_info=args.exc_value)


class JsonFormatter(logging.Formatter):
    """Formats a record as one line of JSON, with the traceback as a field."""

    def __init__(self, process: str) -> None:
        super().__init__()
        self.process = process

    def format(self, record: logging.LogRecord) -> str:
        fields = {key: value for key, value in vars(record).items() if key not in STANDARD_FIELDS}
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        return make_line(self.process, record.created, record.levelname.lower(), record.getMessage(), fields)


def make_line(process: str, created: float, level: str, message: str, fields: Mapping[str, Any]) -> str:
    """A log line as JSON.

    Args:
        created: seconds since the epoch.
    """
    clock = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(created))
    line: dict[str, Any] = {"time": f"{clock}.{int(created % 1 * 1000):03d}Z", "level": level, "process": process}
    if (rank := rank_of(process)) is not None:
        line["rank"] = rank
    if "correlation_id" in fields:
        line["correlation_id"] = fields["correlation_id"]
    return escape(json.dumps(line | {"message": message} | dict(fields), default=str, ensure_ascii=False))


def text_of(line: Mapping[str, Any]) -> str:
    """Message and fields of a JSON line as text: ``message key=value``. ``None`` values are left out."""
    fields = ((key, value) for key, value in line.items() if key not in ENVELOPE and value is not None)
    return escape(str(line["message"]) + "".join(f" {key}={quote(value)}" for key, value in fields))


def quote(value: Any) -> str:
    """Quote a value unless it ends unambiguously at the next space."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    is_plain = text and text.isprintable() and not any(mark in text for mark in ' "=\\')
    return text if is_plain else json.dumps(text, ensure_ascii=False)


def escape(text: str) -> str:
    return text.translate(UNSAFE)
