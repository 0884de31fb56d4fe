"""The standard table: this server and its engine on models of 135M and 1.1B weights, beside what peers reached.

``make bench [PEERS=FILE]``, or ``python scripts/bench/standard_table.py [--models 135m 1.1b] [--peers FILE] [--json
FILE]``. The figures are those of ``tgis bench``; ``peers.py`` says what a peers file is. The models have random weights
and are made on first use. Prompts have 128 tokens; answers have 64, and 128 with one stream. Rates of several streams
are over the whole load with its prefills. "served" is what clients get; "engine" is each prompt computed alone, one
after the other, then decode steps of all rows. The engine is measured before and after each load, and the mean counts.
A server that mixes prefills and decode steps can be faster than the engine, so rates of several streams have no ratio.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from peers import BY_STREAMS, DECODE, FIRST, PEAK, READY, ROWS, read_peers
from tgis_cli.runs.memory import measure_memory
from tgis_server.host.interpreter import make_command, make_environment

HERE = Path(__file__).resolve().parent
MODELS_DIR = HERE.parent.parent / ".cache" / "bench"
MODELS = {"135m": "llama-135m", "1.1b": "llama-1.1b"}
TGIS = Path(sys.executable).parent / "tgis"
PROMPT, NEW, LONG_PROMPT = 128, 64, 512
STREAMS = {DECODE: 1} | {row: streams for streams, row in BY_STREAMS.items()}
CONTEXT = PROMPT + NEW // 2  # where a round of steps starts
MEMORY_S = 0.5
ATTACHED = "tgis_cli.attached"  # the module that launches a server for a single command


def bench(*words: str) -> dict[str, Any]:
    """Run ``tgis bench`` and return its result; problems of the result are passed on to stderr."""
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        command = [TGIS, "bench", *words, "--json", file.name]
        ended = subprocess.run(command, stdout=subprocess.DEVNULL)
        text = Path(file.name).read_text()
    if not text:
        raise SystemExit(f"{shlex.join(map(str, command))} ended with code {ended.returncode}")
    result: dict[str, Any] = json.loads(text)
    for problem in result["problems"]:
        print(f"tgis bench {shlex.join(words)}: {problem}", file=sys.stderr)
    return result


def read_figures(result: dict[str, Any]) -> dict[tuple[str, str], float]:
    return {(each["group"], each["name"]): each["estimate"]["value"] for each in result["figures"]}


def load(model: Path, *, streams: int, requests: int, prompt: int = PROMPT, new: int = NEW) -> dict[str, Any]:
    """The one level of a load on a server of its own."""
    words = ["--concurrency", streams, "--requests", requests, "--input-tokens", prompt, "--output-tokens", new]
    level: dict[str, Any] = bench("load", "--launch", shlex.quote(str(model)), *map(str, words))["detail"]["levels"][0]
    return level


class PeakWatch:
    """The most memory of the servers that descend from this process, sampled in a thread."""

    def __init__(self) -> None:
        self.num_bytes = 0
        self._is_over = threading.Event()

    def run(self) -> None:
        while not self._is_over.wait(MEMORY_S):
            with contextlib.suppress(psutil.Error):
                for process in psutil.Process().children(recursive=True):
                    with contextlib.suppress(psutil.Error):
                        if ATTACHED in process.cmdline():
                            self.num_bytes = max(self.num_bytes, measure_memory(process.pid))

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        thread = threading.Thread(target=self.run)
        thread.start()
        try:
            yield
        finally:
            self._is_over.set()
            thread.join()


def measure(model: Path, rounds: int) -> tuple[dict[str, float], dict[str, float]]:
    """What the server reaches, and what the engine alone reaches at the same time, both by row of the table."""
    served, engine, watch = {}, {}, PeakWatch()
    with watch.watching():
        for row in (DECODE, *BY_STREAMS.values(), FIRST):
            served[row], engine[row] = interleave(partial(serve, model, row, rounds), partial(step, model, row, rounds))
    starts = read_figures(bench("start", str(model), "--repeat", str(rounds)))
    return served | {READY: starts["warm start", "ready"], PEAK: watch.num_bytes / 2**30}, engine


def interleave(served: Callable[[], float], engine: Callable[[], float]) -> tuple[float, float]:
    """Measure the engine before and after the server, and take the mean: the machine's speed may drift."""
    before, found, after = engine(), served(), engine()
    return found, (before + after) / 2


def serve(model: Path, row: str, rounds: int) -> float:
    """The server's figure for a row of the table."""
    if row == FIRST:
        level = load(model, streams=1, requests=5, prompt=LONG_PROMPT, new=2)
        return float(level["latencies"]["ttft"]["mean"])
    if row == DECODE:
        level = load(model, streams=1, requests=max(10, 3 * rounds), new=2 * NEW)
        return 1 / float(level["latencies"]["tpot"]["mean"])
    streams = STREAMS[row]
    level = load(model, streams=streams, requests=rounds * max(16, streams))
    return float(level["whole_output_tokens_per_s"])


def step(model: Path, row: str, rounds: int) -> float:
    """The engine's figure for a row of the table."""
    rows, prefill = ("", LONG_PROMPT) if row == FIRST else (STREAMS[row], PROMPT)
    words = ["--rows", rows, "--context", CONTEXT, "--prefill", prefill, "--repeat", rounds]
    return read_engine(row, read_figures(bench("engine", str(model), *map(str, words))))


def read_engine(row: str, figures: dict[tuple[str, str], float]) -> float:
    """For several streams: all prompts computed one after another, then decode steps of all rows."""
    if row == FIRST:
        return figures[f"prefill, {LONG_PROMPT} tokens", "time"]
    if row == DECODE:
        return figures[f"decode, 1 row at {CONTEXT}", "tokens_per_s"]
    streams = STREAMS[row]
    step_s = figures[f"decode, {streams} rows at {CONTEXT}", "time"]
    prefill_s = figures[f"prefill, {PROMPT} tokens", "time"]
    return streams * NEW / (streams * prefill_s + (NEW - 1) * step_s)


def make_table(
    served: dict[str, float], engine: dict[str, float], peers: dict[str, dict[str, float]]
) -> list[list[str]]:
    table = [["", "served", "engine", "ratio", *peers]]
    for row in ROWS:
        columns = [served.get(row), engine.get(row), find_ratio(row, served, engine)]
        columns += [figures.get(row) for figures in peers.values()]
        table.append([row, *("" if value is None else f"{value:.3g}" for value in columns)])
    return table


def find_ratio(row: str, served: dict[str, float], engine: dict[str, float]) -> float | None:
    """The share of the engine's speed that the server reaches, for rows in which both do the same work.

    The first token's row has times instead of rates.
    """
    if row not in (DECODE, FIRST) or row not in engine:
        return None
    return engine[row] / served[row] if row == FIRST else served[row] / engine[row]


def print_table(title: str, table: list[list[str]]) -> None:
    sizes = [max(map(len, column)) for column in zip(*table, strict=True)]
    print(f"\n{title}")
    for name, *cells in table:
        line = name.ljust(sizes[0]) + "".join(f"  {cell:>{size}}" for cell, size in zip(cells, sizes[1:], strict=True))
        print(line.rstrip())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--rounds", type=int, default=3, help="how often each load, start and step is repeated")
    parser.add_argument("--peers", type=Path, metavar="FILE")
    parser.add_argument("--json", type=Path, metavar="FILE")
    given = parser.parse_args()
    peers = read_peers(given.peers.read_text()) if given.peers else {}
    wanted = [word for shape in given.models for word in ("--model", MODELS[shape])]
    making = make_command(str(HERE / "make_models.py"), str(MODELS_DIR), *wanted)
    subprocess.run(making, env=make_environment(os.environ), check=True)
    found = {}
    for shape in given.models:
        model = MODELS_DIR / MODELS[shape]
        served, engine = measure(model, given.rounds)
        found[shape] = {"served": served, "engine": engine, "peers": peers.get(shape, {})}
        print_table(MODELS[shape], make_table(served, engine, peers.get(shape, {})))
    if given.json:
        given.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
