"""All benchmarks of this machine in one table: engine alone, through gRPC, start, memory, and `tgis --help`.

Usage: python scripts/bench/run_all.py [--models llama-135m llama-1.1b] [--json FILE]

The models have random weights and are made on first use. "engine" drives the runner without gRPC or a scheduler; "gRPC"
is the same load as seen by a client. Both are measured in one run, so their ratio is more reliable than either figure.
Targets are expectations for this engine's reference operations on two Zen 4 cores.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from serve import TGIS, ServeResult, measure
from tgis_server.engines.native.door import cpu_environment
from tgis_server.host.interpreter import make_command, make_environment

HERE = Path(__file__).resolve().parent
MODELS_DIR = HERE.parent.parent / ".cache" / "bench"
STREAMS = (1, 8, 32)
PROMPT_TOKENS, NEW_TOKENS = 128, 64

# output tokens per second by number of streams; seconds until the first of 512 tokens; seconds until ready; peak GiB
TARGETS: dict[str, dict[int | str, float]] = {
    "llama-135m": {1: 32, 8: 115, 32: 165, "first": 0.60, "ready": 6.0, "gib": 1.6},
    "llama-1.1b": {1: 8, 8: 30, 32: 44, "first": 3.2},
}


def bench_engine(model: Path) -> dict[str, Any]:
    """Run ``engine_step.py`` in a separate process and return its figures."""
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        command = make_command(str(HERE / "engine_step.py"), str(model), "--json", file.name)
        environ = cpu_environment(os.environ) | make_environment(os.environ)  # as for a shard
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environ)
        figures: dict[str, Any] = json.loads(Path(file.name).read_text())
        return figures


def bench_help() -> float:
    """Median seconds of ``tgis --help``."""
    times = []
    for _ in range(9):
        started_at = time.monotonic()
        subprocess.run([TGIS, "--help"], check=True, stdout=subprocess.DEVNULL)
        times.append(time.monotonic() - started_at)
    return statistics.median(times)


def rows_of(name: str, engine: dict[str, Any], served: ServeResult) -> list[tuple[str, str, str, str, str]]:
    """Rows of the table: what is measured, engine, gRPC, ratio, and target."""
    target = TARGETS[name]
    alone = {run["rows"]: run["decode_tokens_per_s" if run["rows"] == 1 else "tokens_per_s"] for run in engine["runs"]}
    rows = []
    for load in served.loads:
        rate = load.decode_tokens_per_s if load.streams == 1 else load.output_tokens_per_s
        what = f"{name}, {load.streams} streams, {'decode' if load.streams == 1 else 'output'} tok/s"
        reached = alone[load.streams]
        rows.append((what, f"{reached:.0f}", f"{rate:.0f}", f"{rate / reached:.2f}", f"{target[load.streams]:g}"))
    first = engine["first_token_s"]
    what = f"{name}, first token of 512, s"
    ratio = f"{first / served.first_token_512_s:.2f}"
    rows.append((what, f"{first:.2f}", f"{served.first_token_512_s:.2f}", ratio, f"{target['first']:g}"))
    rows.append((f"{name}, start to ready, s", "", f"{served.ready_s:.1f}", "", f"{target.get('ready', '')}"))
    rows.append((f"{name}, peak memory, GiB", "", f"{served.peak_bytes / 2**30:.2f}", "", f"{target.get('gib', '')}"))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=sorted(TARGETS), default=sorted(TARGETS))
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    making = make_command(str(HERE / "make_models.py"), str(MODELS_DIR))
    subprocess.run(making, env=make_environment(os.environ), check=True)
    table = [("", "engine", "gRPC", "ratio", "target")]
    figures: dict[str, Any] = {"help_s": bench_help()}
    for name in given.models:
        model = MODELS_DIR / name
        print(f"Measuring {name}", file=sys.stderr, flush=True)
        engine = bench_engine(model)
        served = measure(model, list(STREAMS), [], prompt=PROMPT_TOKENS, new=NEW_TOKENS)
        figures[name] = {"engine": engine, "grpc": asdict(served)}
        table += rows_of(name, engine, served)
    table.append(("tgis --help, s", "", f"{figures['help_s']:.2f}", "", "0.3"))
    for what, *cells in table:
        print(f"{what:36}" + "".join(f"{cell:>9}" for cell in cells))
    if given.json:
        given.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
