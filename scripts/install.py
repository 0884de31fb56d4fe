"""Set up a virtual environment and show on one line what is being done.

``install.py --venv FOLDER`` makes it, with the interpreter that runs this. ``install.py WHAT ARGUMENTS`` installs
packages with pip, given the arguments of ``pip install``; `make` calls it with the interpreter of the environment. pip
says nothing for minutes with ``--quiet``, and a hundred lines without.
"""

from __future__ import annotations

import os
import platform
import queue
import re
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from typing import TextIO

PIP = (sys.executable, "-P", "-m", "pip", "install", "--disable-pip-version-check", "--progress-bar", "off")
# The beginning of a line of pip, and what it means; the words are its match.
STEPS = (
    (re.compile(r"Collecting ([\w.-]+)"), "finding {}"),
    (re.compile(r"Downloading (?:\S*/)?([A-Za-z0-9_.]+)-\S*( \(.*\))?"), "downloading {}{}"),
    (re.compile(r"Using cached (?:\S*/)?([A-Za-z0-9_.]+)-"), "finding {}"),
    (re.compile(r"Building \w+ for ([\w.-]+)"), "building {}"),
    (re.compile(r"(?:Preparing|Building|Obtaining|Installing build) "), "preparing the build"),
    (re.compile(r"Installing collected packages: (.*)"), "installing {} packages"),
)
TICK_S = 1.0
LINE_EVERY_S = 15.0  # where lines cannot be rewritten
KEPT_LINES = 5  # of an unknown failure

NO_NETWORK = (
    "Failed to establish a new connection",
    "NewConnectionError",
    "Connection refused",
    "Name or service not known",
    "Temporary failure in name resolution",
    "Network is unreachable",
    "ConnectTimeoutError",
    "ProxyError",
    "Read timed out",
)
CAUSES = {  # in pip's output -> what to do
    **dict.fromkeys(
        NO_NETWORK,
        "the package index cannot be reached. Check the network and its proxy (HTTPS_PROXY), or name a mirror with "
        "PIP_INDEX_URL.",
    ),
    "No space left on device": "the disk is full. Free some gigabytes; TMPDIR and PIP_CACHE_DIR choose other disks.",
    "externally-managed-environment": f"this Python belongs to the operating system: remove {sys.prefix} and retry.",
}


def main(arguments: Sequence[str]) -> int:
    what, *rest = arguments
    if what == "--venv":
        return create(*rest, sys.stdout)
    return install(what, [*PIP, *rest], sys.stdout)


def create(folder: str, stream: TextIO) -> int:
    """Make a virtual environment, and return the exit code."""
    what = f"{folder} with Python {platform.python_version()}"
    return run([sys.executable, "-m", "venv", folder], ("Creating", "Created", "created"), what, "venv", stream)


def install(what: str, command: Sequence[str], stream: TextIO) -> int:
    """Run pip, and return its exit code."""
    return run(command, ("Installing", "Installed", "installed"), what, "pip", stream)


def run(command: Sequence[str], verbs: tuple[str, str, str], what: str, program: str, stream: TextIO) -> int:
    """Run a command, and return its exit code. Of its output only the cause of a failure is shown.

    Args:
        verbs: what is done to ``what``: at the beginning of a sentence, now and afterwards, and after "cannot be".
        program: its name for people.
    """
    doing, done, passive = verbs
    started_at = time.monotonic()
    progress = ProgressLine(f"{doing} {what}", stream)
    output: list[str] = []
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as process:
        assert process.stdout is not None, "it is a pipe"
        lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        threading.Thread(target=read_lines, args=(process.stdout, lines), daemon=True).start()
        try:
            while (line := next_line(lines)) is not None:
                output += [line] if line else []
                progress.show(line.strip(), time.monotonic() - started_at)
        except KeyboardInterrupt:
            process.terminate()
            raise SystemExit(130) from None
        finally:
            progress.clear()
    exit_code = process.returncode
    if exit_code:
        print(f"{what[0].upper()}{what[1:]} cannot be {passive}: {explain(output, program)}", file=stream, flush=True)
    else:
        print(f"{done} {what} in {time.monotonic() - started_at:.0f} s", file=stream, flush=True)
    return exit_code


def read_lines(pipe: TextIO, lines: queue.SimpleQueue[str | None]) -> None:
    for line in pipe:
        lines.put(line.rstrip())
    lines.put(None)


def next_line(lines: queue.SimpleQueue[str | None]) -> str | None:
    """The program's next line of output; empty if none arrives within a second, ``None`` at the end."""
    try:
        return lines.get(timeout=TICK_S)
    except queue.Empty:
        return ""


def explain(output: Sequence[str], program: str) -> str:
    """Why a program failed, in a sentence if it is known."""
    text = "\n".join(output)
    for sign, cause in CAUSES.items():
        if sign in text:
            return cause
    errors = [line for line in output if line.startswith("ERROR")] or output[-KEPT_LINES:]
    return f"{program} says:\n" + "\n".join(f"  {line}" for line in errors[-KEPT_LINES:])


def describe_step(line: str) -> str:
    """What a line of pip says about its work, in a few words; empty: nothing."""
    for pattern, text in STEPS:
        if found := pattern.match(line):
            if text.startswith("installing"):
                number = found[1].count(",") + 1
                return text.format(number) if number > 1 else f"installing {found[1]}"
            return text.format(*(group or "" for group in found.groups()))
    return ""


def shorten(text: str, columns: int) -> str:
    """As many of its words as fit."""
    while len(text) > columns and " " in text:
        text = text.rpartition(" ")[0]
    return text[:columns]


class ProgressLine:
    """The task, the elapsed time and pip's latest step: one line rewritten on a terminal, new lines elsewhere."""

    def __init__(self, title: str, stream: TextIO) -> None:
        self._title, self._stream = title, stream
        self._step = ""
        self._shown_at = -LINE_EVERY_S
        self._rewrites = stream.isatty() and os.environ.get("TERM") != "dumb"

    def show(self, line: str, elapsed_s: float) -> None:
        """
        Args:
            line: a line of pip's output.
        """
        self._step = describe_step(line) or self._step
        step = f", {self._step}" if self._step else ""
        text = f"{self._title}: {elapsed_s:.0f} s{step}"
        if self._rewrites:
            columns = os.get_terminal_size(self._stream.fileno()).columns or 80
            self._stream.write(f"\r\x1b[2K{shorten(text, columns - 1)}")
        elif elapsed_s - self._shown_at >= LINE_EVERY_S:
            self._shown_at = elapsed_s
            self._stream.write(text + "\n")
        self._stream.flush()

    def clear(self) -> None:
        if self._rewrites:
            self._stream.write("\r\x1b[2K")
            self._stream.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
