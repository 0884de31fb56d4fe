"""Launch a model and measure what a client sees: start to ready, throughput, first token, and peak memory.

Usage: python scripts/bench/serve.py --model DIR [--streams 1 8 32] [--json] [-- LAUNCH OPTIONS]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psutil

from load import LoadResult, run_load

TGIS = Path(sys.executable).parent / "tgis"
READY_TIMEOUT_S = 600
MEMORY_INTERVAL_S = 0.25


@dataclass
class ServeResult:
    """Figures of one server; times are in seconds and memory is in bytes."""

    model: str
    ready_s: float = 0.0
    first_token_512_s: float = 0.0
    peak_bytes: int = 0  # proportional set size of the whole process tree
    loads: list[LoadResult] = field(default_factory=list)


class MemoryWatch:
    """Samples the proportional set size of a process tree in a thread."""

    def __init__(self, pid: int) -> None:
        self.peak_bytes = 0
        self._root = psutil.Process(pid)
        self._is_done = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._is_done.wait(MEMORY_INTERVAL_S):
            with contextlib.suppress(psutil.Error):
                tree = [self._root, *self._root.children(recursive=True)]
                self.peak_bytes = max(self.peak_bytes, sum(p.memory_full_info().pss for p in tree))

    def stop(self) -> int:
        self._is_done.set()
        self._thread.join()
        return self.peak_bytes


@contextlib.contextmanager
def serving(model: Path | None, options: list[str], tgis: Path = TGIS) -> Iterator[tuple[str, float, int]]:
    """Launch a server on free ports; yield its gRPC address, the seconds until it was ready, and the launcher's pid."""
    with tempfile.TemporaryDirectory(prefix="tgis-bench-") as folder:
        command = [tgis, "launch", *([str(model)] if model else []), "--host", "127.0.0.1"]
        command += ["--grpc-port", "0", "--port", "0", "--run-dir", folder, *options]
        started_at = time.monotonic()
        server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            while not (files := list(Path(folder).glob("*/ready.json"))):
                if server.poll() is not None or time.monotonic() - started_at > READY_TIMEOUT_S:
                    raise RuntimeError(f"{' '.join(map(str, command))} did not become ready")
                time.sleep(0.01)
            ready_s = time.monotonic() - started_at
            yield json.loads(files[0].read_text())["grpc"], ready_s, server.pid
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait()


def measure(model: Path | None, streams: list[int], options: list[str], *, prompt: int, new: int) -> ServeResult:
    """Run all loads one after the other on one server, each with different prompts."""
    with serving(model, options) as (url, ready_s, pid):
        result = ServeResult(str(model or "demo"), ready_s=ready_s)
        memory = MemoryWatch(pid)
        asyncio.run(run_load(url, streams=1, requests=1, prompt_tokens=16, new_tokens=4, seed=999))  # warm up
        firsts = asyncio.run(run_load(url, streams=1, requests=3, prompt_tokens=512, new_tokens=1, seed=100))
        result.first_token_512_s = firsts.first_token_s
        for num_streams in streams:
            new_tokens = 2 * new if num_streams == 1 else new
            load = run_load(
                url,
                streams=num_streams,
                requests=max(2, num_streams),
                prompt_tokens=prompt,
                new_tokens=new_tokens,
                seed=1000 * num_streams,
            )
            result.loads.append(asyncio.run(load))
        result.peak_bytes = memory.stop()
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path)
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument(
        "--new-tokens", type=int, default=64, help="output tokens per request; twice as many with one stream"
    )
    parser.add_argument("--json", action="store_true")
    parser.add_argument("options", nargs="*", help="options of tgis launch, after --")
    given = parser.parse_args()
    result = measure(given.model, given.streams, given.options, prompt=given.prompt_tokens, new=given.new_tokens)
    if given.json:
        print(json.dumps(asdict(result), indent=1))
        return
    print(f"{result.model}: ready in {result.ready_s:.1f} s, peak {result.peak_bytes / 2**30:.2f} GiB,", end=" ")
    print(f"first token of a 512-token prompt after {result.first_token_512_s:.2f} s")
    print(f"{'streams':>8} {'output tok/s':>13} {'decode tok/s':>13} {'first token s':>14} {'gap ms':>8}")
    for load in result.loads:
        print(
            f"{load.streams:8d} {load.output_tokens_per_s:13.1f} {load.decode_tokens_per_s:13.1f}"
            f" {load.first_token_s:14.2f} {load.inter_token_s * 1000:8.1f}"
        )


if __name__ == "__main__":
    main()
