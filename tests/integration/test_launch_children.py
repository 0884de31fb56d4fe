"""The supervisor with stand-ins for children: small programs that fail in ways the real ones should not."""

from __future__ import annotations

import asyncio
import io
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tgis_cli.relay.terminal import Terminal
from tgis_cli.runs.run_dir import make_run_dir
from tgis_cli.supervisor.signals import StopSignals
from tgis_cli.supervisor.supervisor import Outcome, Supervisor
from tgis_server.options import ServeConfig
from tgis_server.run import Run

# Programs get what real children get: NAME --run FILE --death-fd N --parent PID
SLEEP = "import time; time.sleep(60)"
ONE_DIES_SILENTLY = "import sys, time\nif sys.argv[1] == 'shard-1': sys.exit(3)\ntime.sleep(60)"
ONE_CANNOT_IMPORT = "import sys, time\nif sys.argv[1] == 'shard-1': import no_such_module\ntime.sleep(60)"
ALL_END = "pass"
BLAME_EACH_OTHER = """
import sys, time
from pathlib import Path
from tgis_server.child import write_error
from tgis_server.errors import ModelError, PeerLost
errors = Path(sys.argv[3]).parent / "errors"
if sys.argv[1] == "shard-0":
    sys.exit(write_error(errors, "shard-0", PeerLost("Shard 1 is gone.")))
if sys.argv[1] == "shard-1":
    while not (errors / "shard-0.json").exists():
        time.sleep(0.005)
    sys.exit(write_error(errors, "shard-1", ModelError("The file is broken.")))
time.sleep(60)
"""
LEAVES_A_GRANDCHILD = """
import subprocess, sys
sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print("grandchild", sleeper.pid)
sys.exit(4)
"""
SEGFAULT = "import ctypes, sys, time\nif sys.argv[1] == 'shard-0': ctypes.string_at(0)\ntime.sleep(60)"
LONG_LINES = "import sys\nprint('x' * 3_000_000)\nprint('without an end', end='')\nsys.exit(1)"


@pytest.fixture
def base() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="t-"))
    yield path
    shutil.rmtree(path)


def supervise(base: Path, program: str, **options: Any) -> tuple[Outcome, str, Run]:
    """Run ``program`` as two shards and a front-end; returns the outcome, all output, and the run."""
    run = Run(
        config=ServeConfig(rehearse=True, **options),
        run_dir=make_run_dir(base),
        model_id="m",
        model_dir=base,
        engine="fake",
        device="cpu",
        dtype="float32",
        num_shard=2,
        max_sequence_length=64,
        is_max_sequence_length_explicit=False,
        max_batch_tokens=64,
        tokenization_workers=1,
    )
    run.save()
    output = io.StringIO()
    terminal = Terminal(output, output, {}, as_json=False, names=["launcher", "frontend", "shard-0", "shard-1"])

    async def live() -> Outcome:
        return await Supervisor(run, terminal, {}, StopSignals(), command=(sys.executable, "-c", program)).supervise()

    outcome = asyncio.run(live())
    assert terminal.close(timeout_s=5)
    return outcome, output.getvalue(), run


def test_a_child_that_ends_silently_is_named_with_its_exit_code(base: Path):
    outcome, _, run = supervise(base, ONE_DIES_SILENTLY)

    assert outcome == Outcome(5, "shard-1 ended with exit code 3; it gave no reason.")
    assert [file.read_text() for file in run.errors_dir.iterdir()] == [outcome.sentence + "\n"]


def test_the_last_lines_of_a_child_that_cannot_start_give_the_cause_and_are_kept(base: Path):
    outcome, _, run = supervise(base, ONE_CANNOT_IMPORT)

    assert outcome.sentence.startswith("shard-1: the Python package no_such_module is not installed")
    assert "Traceback" in (run.errors_dir / "shard-1.log").read_text()


def test_a_secondary_error_that_comes_first_is_not_the_cause(base: Path):
    outcome, _, _ = supervise(base, BLAME_EACH_OTHER)

    assert outcome == Outcome(3, "shard-1: The file is broken.")


def test_a_child_that_exits_unasked_with_0_is_a_failure_too(base: Path):
    outcome, _, _ = supervise(base, ALL_END)

    assert outcome.exit_code == 5
    assert "ended without being asked to" in outcome.sentence


def test_a_crash_is_reported_in_words(base: Path):
    outcome, _, _ = supervise(base, SEGFAULT)

    assert outcome.exit_code == 5
    assert outcome.sentence.startswith("shard-0 crashed with SIGSEGV at ")


def test_a_start_without_any_answer_ends(base: Path):
    outcome, _, _ = supervise(base, SLEEP, startup_timeout=0.3)

    assert outcome.exit_code == 5
    assert outcome.sentence.startswith("shard-0 has not answered once, and there was no progress for 0.3 s")


def test_the_children_of_a_child_die_with_it(base: Path):
    _, output, _ = supervise(base, LEAVES_A_GRANDCHILD)

    pids = [int(line.rsplit(" ", 1)[1]) for line in output.splitlines() if "grandchild" in line]
    assert pids
    wait_until_gone(pids)


def test_long_and_unfinished_lines_are_passed_on(base: Path):
    _, output, _ = supervise(base, LONG_LINES)

    assert output.count("x") > 3_000_000
    assert re.search(r"^\S+ +\| \S+ info    without an end$", output, re.MULTILINE)  # from the child that ends first


def wait_until_gone(pids: list[int]) -> None:
    """Wait for killed processes to end, which may take a while on a busy machine."""
    deadline = time.monotonic() + 10.0
    while not all(map(is_gone, pids)):
        assert time.monotonic() < deadline, "a grandchild is still alive"
        time.sleep(0.01)


def is_gone(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    return not stat.exists() or stat.read_text().rsplit(")", 1)[1].split()[0] == "Z"
