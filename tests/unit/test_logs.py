"""The log of a child."""

from __future__ import annotations

import json
import subprocess
import sys

PROGRAM = """
import logging, threading, warnings
from tgis_server.logs import setup_logging
setup_logging("shard-3", level="info")
warnings.warn("old", DeprecationWarning)
thread = threading.Thread(target=lambda: 1 / 0, name="reader")
thread.start()
thread.join()
logging.getLogger("x").info("two\\nlines", extra={"correlation_id": "a", "count": 2})
logging.getLogger("x").debug("unseen")
"""


def test_warnings_and_thread_errors_are_logged():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)

    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert {(line.pop("process"), line.pop("rank"), bool(line.pop("time"))) for line in lines} == {("shard-3", 3, True)}
    traceback = lines[1].pop("traceback")
    assert lines == [
        {"level": "warning", "message": "<string>:5: DeprecationWarning: old"},
        {"level": "error", "message": "Thread reader failed."},
        {"level": "info", "correlation_id": "a", "message": "two\nlines", "count": 2},
    ]
    assert traceback.splitlines()[-1] == "ZeroDivisionError: division by zero"
