"""`tgis bench engine` and `tgis bench start` with real processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

TGIS = Path(sys.executable).parent / "tgis"
SMALL = ("--rows", "1,2", "--context", "8", "--prefill", "16", "--repeat", "2", "--json", "-")
DEADLINE_S = 120.0


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    """Variables of options would change what is measured; temporary files show what is left behind."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "VIRTUAL_ENV") if name in os.environ}
    return kept | {"TMPDIR": str(tmp_path), "XDG_STATE_HOME": str(tmp_path / "state")}


def bench(environ: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([TGIS, "bench", *words], env=environ, capture_output=True, text=True, timeout=DEADLINE_S)


def figures_of(text: str) -> dict[tuple[str, str], dict[str, Any]]:
    return {(each["group"], each["name"]): each for each in json.loads(text)["figures"]}


@pytest.mark.acceptance
def test_the_engine_is_measured_beside_the_limits_of_the_machine(environ: dict[str, str], tmp_path: Path):
    ended = bench(environ, "engine", *SMALL)

    assert ended.returncode == 0, ended.stderr
    found = figures_of(ended.stdout)
    step = found["decode, 2 rows at 8", "time"]
    assert step["count"] == 2
    assert step["estimate"]["low"] <= step["estimate"]["value"] <= step["estimate"]["high"]
    rate = found["decode, 2 rows at 8", "tokens_per_s"]["estimate"]["value"]
    assert rate == pytest.approx(2 / step["estimate"]["value"])
    for name in ("memory_share", "compute_share"):
        assert found["prefill, 16 tokens", name]["estimate"]["value"] > 0
    assert json.loads(ended.stdout)["fingerprint"]["model"]["vocab_size"] == 1536
    assert list(tmp_path.iterdir()) == []


def test_followers_execute_the_plans_of_the_benchmark(environ: dict[str, str]):
    ended = bench(environ, "engine", "--rehearse", "--num-shard", "2", "--rehearse-step-ms", "5", *SMALL)

    assert ended.returncode == 0, ended.stderr
    step_s = figures_of(ended.stdout)["decode, 1 row at 8", "time"]["estimate"]["value"]
    assert step_s >= 0.005


def test_a_follower_that_fails_is_named_and_nothing_is_left(environ: dict[str, str], tmp_path: Path):
    ended = bench(environ | {"TGIS_FAULT": "shard1:error@step3"}, "engine", "--rehearse", "--num-shard", "2", *SMALL)

    assert ended.returncode == 5
    assert "shard-1" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert [path.name for path in tmp_path.iterdir() if path.name not in ended.stderr] == []


def test_a_signal_ends_with_what_was_measured(environ: dict[str, str]):
    words = ("--rehearse", "--rehearse-step-ms", "20", "--rows", "1", "--context", "8", "--prefill", "")
    command = [TGIS, "bench", "engine", *words, "--repeat", "1000", "--json", "-"]
    with subprocess.Popen(command, env=environ, stdout=-1, stderr=-1, text=True) as process:
        children = []
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("round "):
                children = psutil.Process(process.pid).children()
                break
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=DEADLINE_S)

    assert process.returncode == 130
    assert children
    assert not any(child.is_running() for child in children)
    assert json.loads(output)["is_cut"]


def test_cold_and_warm_starts_are_measured_by_phase(environ: dict[str, str]):
    ended = bench(environ, "start", "--rehearse", "--repeat", "1", "--json", "-")

    assert ended.returncode == 0, ended.stderr
    found = figures_of(ended.stdout)
    for kind in ("cold", "warm"):
        ready_s = found[f"{kind} start", "ready"]["estimate"]["value"]
        assert 0 < found["shard-0: starting", kind]["estimate"]["value"] < ready_s
        assert found[f"{kind} start", "peak_pss_bytes"]["estimate"]["value"] > 10 << 20
