"""Launch the demo model, stream one answer to the terminal, and stop. `make demo` runs this after installing."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tgis_cli.own_server.start_line import StartLine
from tgis_cli.runs.servers import find_server
from tgis_cli.terminal.sentences import print_sentence

TGIS = Path(sys.executable).parent / "tgis"
READY_TIMEOUT_S = 120
INTERRUPTED = 130  # as shells report Ctrl-C
PROMPT = "Once upon a time"
NUM_TOKENS = 80


def main() -> int:
    """Return 0 only if the answer was complete and the server stopped cleanly. The log is kept otherwise."""
    folder = Path(tempfile.mkdtemp(prefix="tgis-demo-"))
    log = folder / "server.log"
    try:
        exit_code, reason = run_demo(folder, log)
    except KeyboardInterrupt:
        exit_code, reason = INTERRUPTED, ""
    if exit_code in (0, INTERRUPTED):
        shutil.rmtree(folder, ignore_errors=True)
    else:
        print(file=sys.stderr)
        print_sentence(f"The demo failed: {reason}\nThe server's log is {log}", sys.stderr)
    return exit_code


def run_demo(folder: Path, log: Path) -> tuple[int, str]:
    """The exit code, and why it is not 0."""
    print("Starting the demo model on free ports of this machine", flush=True)
    # float32, so that the answer is the same on every machine.
    options = ["--host", "127.0.0.1", "--grpc-port", "0", "--port", "0", "--run-dir", folder, "--dtype", "float32"]
    with log.open("wb") as output:
        server = subprocess.Popen([TGIS, "launch", *options], stdout=output, stderr=subprocess.STDOUT)
    started_at = time.monotonic()
    try:
        if (url := wait_for_url(folder, server)) is None:
            if server.poll() is None:
                return 1, f"the server was not ready within {READY_TIMEOUT_S} s."
            return server.returncode or 1, last_line(log)
        seconds = time.monotonic() - started_at
        print_sentence(f'Ready after {seconds:.1f} s; what `tgis generate "{PROMPT}"` shows:\n', sys.stdout)
        answered = subprocess.run(
            [TGIS, "generate", "--url", url, "--max-new-tokens", str(NUM_TOKENS), PROMPT]
        ).returncode
        print("\nStopping the server", flush=True)
    finally:
        server.send_signal(signal.SIGTERM)
        stopped = server.wait()
    if answered:
        return answered, "`tgis generate` got no answer."
    if stopped:
        return stopped, last_line(log)
    tgis = os.path.relpath(TGIS)
    print_sentence(
        f"Next: `{tgis} run` completes texts of yours with this model, and `{tgis} launch MODEL` serves a model of "
        "yours; README.md has the rest.",
        sys.stdout,
    )
    return 0, ""


def wait_for_url(folder: Path, server: subprocess.Popen[bytes]) -> str | None:
    """Wait for the launcher's ready.json and return the gRPC address; ``None`` if it does not come."""
    deadline = time.monotonic() + READY_TIMEOUT_S
    line = StartLine("the demo model", sys.stdout, os.environ)
    try:
        while time.monotonic() < deadline and server.poll() is None:
            for file in folder.glob("*/ready.json"):
                return str(json.loads(file.read_text())["grpc"])
            line.update(find_server(server.pid))
            time.sleep(0.05)
    finally:
        line.clear()
    return None


def last_line(log: Path) -> str:
    """The cause of a failure, with which the launcher's log ends."""
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    return lines[-1] if lines else "the server wrote nothing."


if __name__ == "__main__":
    sys.exit(main())
