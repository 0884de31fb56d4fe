"""The launcher of one `tgis run`, as its child: started, watched, and ended with it.

It has its own session, so that Ctrl-C during an answer does not reach it. It cannot outlive this process, however that
ends: see ``tgis_cli/attached.py``.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TextIO

from tgis_cli.own_server.run_log import RunLog
from tgis_cli.runs.servers import READY_FILE, RunningServer, find_server
from tgis_cli.terminal.fixed_in_run import ALWAYS, NOT_FOR_LOOPBACK
from tgis_server.errors import GroupFailed, HubError, ModelError, NotEnoughDevices, UsageError
from tgis_server.host.interpreter import make_command, make_environment
from tgis_server.words.signals import signal_name

ENDINGS = ((signal.SIGTERM, 5.0), (signal.SIGTERM, 5.0), (signal.SIGKILL, None))  # with the seconds to wait
POLL_S = 0.02
KINDS = {kind.exit_code: kind for kind in (UsageError, ModelError, NotEnoughDevices, GroupFailed, HubError)}


@dataclass(frozen=True, slots=True)
class LaunchOptions:
    """The command line of `tgis launch`, parsed: flags by option name, as text or a switch."""

    flags: Mapping[str, str | bool | None]
    config_file: Path | None = None
    python: str | None = None  # interpreter of the installation to launch; None: this one


class Launcher:
    """A running or ended `tgis launch`."""

    def __init__(self, process: subprocess.Popen[bytes], cause: IO[bytes], log: RunLog) -> None:
        """
        Args:
            cause: the launcher's termination log.
        """
        self._process = process
        self._cause = cause
        self._log = log

    @classmethod
    @contextlib.contextmanager
    def start(
        cls, options: LaunchOptions, environ: Mapping[str, str], log: RunLog, echo: TextIO | None
    ) -> Iterator[Launcher]:
        """Start the launcher, and stop it at the end of the block. Must be called in the main thread.

        Args:
            echo: an output of this process, on which the launcher shows all lines as `tgis launch --verbose` does;
                the log then gets a copy, instead of a log file that the user has set.
        """
        with tempfile.TemporaryFile() as cause:
            flags = {**options.flags, **ALWAYS, "termination_log": f"/proc/self/fd/{cause.fileno()}"}
            if echo is not None and log.path is not None:
                flags["log_file"] = str(log.path)
            config_file = options.config_file and str(options.config_file)
            text = json.dumps({"flags": flags, "config_file": config_file, "is_verbose": echo is not None})
            program, *arguments = make_command("-m", "tgis_cli.attached", str(os.getpid()), text)
            launcher = cls(
                subprocess.Popen(
                    (options.python or program, *arguments),
                    env=make_child_environment(environ),
                    stdin=subprocess.DEVNULL,
                    stdout=echo or log.file,
                    stderr=subprocess.STDOUT,
                    pass_fds=(cause.fileno(),),
                    start_new_session=True,
                ),
                cause,
                log,
            )
            try:
                yield launcher
            finally:
                launcher.stop()

    def find_server(self) -> RunningServer | None:
        """What the launcher has written about its server; ``None`` until it has looked at the model."""
        server = find_server(self._process.pid)
        return None if server is None or server.is_looking else server

    def until_ready(self) -> Iterator[RunningServer | None]:
        """What is known about the server, again and again; the last item says that it is ready.

        Raises:
            TgisError: the launcher has ended; the error has its sentence and exit code.
        """
        server: RunningServer | None = None
        while True:
            self.check()
            if server is None or (server.door / READY_FILE).exists():
                server = self.find_server()
            yield server
            if server is not None and server.has_been_ready:
                return
            time.sleep(POLL_S)

    def check(self, within_s: float = 0.0) -> None:
        """
        Args:
            within_s: how long to wait for the launcher to end.

        Raises:
            TgisError: the launcher has ended; the error has its sentence and exit code.
        """
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(within_s)
        if self._process.poll() is None:
            return
        raise KINDS.get(self._process.returncode, GroupFailed)(self._read_cause())

    def stop(self) -> None:
        """Stop the launcher, and wait while it stops its processes and removes its run directory."""
        for number, patience_s in ENDINGS:
            if self._process.poll() is None:
                self._process.send_signal(number)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._process.wait(patience_s)

    def _read_cause(self) -> str:
        """The launcher's sentence."""
        self._cause.seek(0)
        sentence = self._cause.read().decode(errors="replace").partition("\n")[0]
        code = self._process.returncode
        if sentence:
            return sentence
        if code == 0:
            return "The server was stopped from outside."
        if code < 0:
            return f"The launcher was killed by {signal_name(-code)}."
        last_line = self._log.read_last_line()
        return f"The launcher ended with exit code {code}{f': {last_line}' if last_line else '.'}"


def make_child_environment(environ: Mapping[str, str]) -> dict[str, str]:
    kept = {name: value for name, value in environ.items() if name not in NOT_FOR_LOOPBACK}
    return make_environment(kept)
