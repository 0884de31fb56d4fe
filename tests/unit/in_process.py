"""Runs a `tgis` command inside the test's process, which saves the time to start another process."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
from collections.abc import Mapping
from unittest import mock

from tgis_cli.app import main


def run_in_process(*arguments: object, environ: Mapping[str, str]) -> subprocess.CompletedProcess[bytes]:
    """Run a command with an empty stdin and the given environment; returns its outputs and exit code."""
    command = ["tgis", *map(str, arguments)]
    streams = [io.TextIOWrapper(io.BytesIO(), write_through=True) for _ in range(2)]
    with (
        mock.patch.dict(os.environ, environ, clear=True),
        mock.patch.object(sys, "argv", command),
        mock.patch.object(sys, "stdin", io.StringIO()),
        contextlib.redirect_stdout(streams[0]),
        contextlib.redirect_stderr(streams[1]),
    ):
        try:
            main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(bool(end.code))
        else:
            code = 0
    stdout, stderr = (stream.buffer.getvalue() for stream in streams)
    return subprocess.CompletedProcess(command, code, stdout, stderr)
