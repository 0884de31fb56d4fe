"""Launch the demo model, stream one answer to the terminal, and stop. `make demo` runs this after installing."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TGIS = Path(sys.executable).parent / "tgis"
READY_TIMEOUT_S = 120
PROMPT = "Once upon a time"
NUM_TOKENS = 80


def main() -> int:
    """Return 0 only if the answer was complete and the server stopped cleanly."""
    print("Launching the demo model on free ports of this machine", flush=True)
    with tempfile.TemporaryDirectory(prefix="tgis-demo-") as folder:
        # float32, so that the answer is the same on every machine.
        options = ["--host", "127.0.0.1", "--grpc-port", "0", "--port", "0", "--run-dir", folder, "--dtype", "float32"]
        server = subprocess.Popen([TGIS, "launch", *options])
        try:
            url = wait_for_url(Path(folder), server)
            print(f"\nRequesting a continuation: tgis generate --url {url} {PROMPT!r}\n", flush=True)
            answered = subprocess.run(
                [TGIS, "generate", "--url", url, "--max-new-tokens", str(NUM_TOKENS), PROMPT]
            ).returncode
            print("\nStopping the server", flush=True)
        finally:
            server.send_signal(signal.SIGTERM)
            stopped = server.wait()
    return answered or stopped


def wait_for_url(folder: Path, server: subprocess.Popen[bytes]) -> str:
    """Wait for the launcher's ready.json and return the gRPC address."""
    deadline = time.monotonic() + READY_TIMEOUT_S
    while time.monotonic() < deadline and server.poll() is None:
        for file in folder.glob("*/ready.json"):
            return str(json.loads(file.read_text())["grpc"])
        time.sleep(0.05)
    sys.exit(f"The server was not ready within {READY_TIMEOUT_S} s." if server.poll() is None else server.returncode)


if __name__ == "__main__":
    sys.exit(main())
