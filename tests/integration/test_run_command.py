"""`tgis run` and the prompt loop, on pseudo-terminals, in pipes, and when they are killed."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import signal
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from screens import Screen, Terminal, open_terminal
from shards import wait_until
from tgis_server.child import EXIT_ORPHANED
from tgis_server.host.interpreter import make_command

TGIS = Path(sys.executable).parent / "tgis"
# On a dumb terminal readline sends no escape sequences.
ENVIRON = {"TERM": "dumb", "LANG": "C.UTF-8", "PATH": os.environ["PATH"]}
REHEARSAL = ("--rehearse", "--max-new-tokens", "30")
ENDLESS = ("--rehearse", "--max-new-tokens", "900")
DEADLINE_S = 60.0


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    """Give the test state and run directories of its own."""
    (tmp_path / "runs").mkdir()
    return ENVIRON | {
        "HOME": str(tmp_path),
        "TGIS_RUN_DIR": str(tmp_path / "runs"),
        "TGIS_REHEARSE_STEP_MS": "20",
        "HF_HUB_CACHE": str(tmp_path),
    }


def descendants(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


@contextlib.contextmanager
def nothing_left(environ: dict[str, str]) -> Iterator[Callable[[subprocess.Popen[bytes]], None]]:
    """Yield a function that records what a process has started; at the end all that and the run directory are gone."""
    noted: list[psutil.Process] = []
    yield lambda process: noted.extend(descendants(process))
    assert noted, "the launcher and its children were noted"
    _, alive = psutil.wait_procs(noted, DEADLINE_S)
    assert not alive
    assert list(Path(environ["TGIS_RUN_DIR"]).iterdir()) == []


def run(environ: dict[str, str], *arguments: str, text: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [TGIS, "run", *arguments],
        env=environ,
        input=text,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def wait_for(terminal: Terminal, condition: Callable[[Screen], object]) -> None:
    """Like the terminal's own method, but patient enough for the start of a server."""
    wait_until(lambda: condition(terminal.screen), f"a change of {terminal.screen.lines}", DEADLINE_S)


def has_prompt(screen: Screen) -> bool:
    return screen.lines[-1] == ">>>"


def test_a_pipe_gets_only_the_answer_and_the_log_is_private(environ: dict[str, str], tmp_path: Path):
    answer = run(environ, *REHEARSAL, text="Once upon a time\n")
    facts = json.loads(run(environ, *REHEARSAL, "--json", "Once upon", "a time").stdout)

    assert answer.returncode == 0
    assert all(line.startswith("Starting ") for line in answer.stderr.splitlines())  # of a slow start
    assert answer.stdout == facts["text"] + "\n"
    logs = sorted((tmp_path / ".local/state/tgis/run-logs").iterdir())
    assert [log.stat().st_mode & 0o777 for log in logs] == [0o600, 0o600]
    assert "launcher | " in logs[0].read_text()
    assert list(Path(environ["TGIS_RUN_DIR"]).iterdir()) == []


def test_a_failed_start_gives_the_launchers_sentence_and_code_and_names_the_log(
    environ: dict[str, str], tmp_path: Path
):
    missing = run(environ, "no/model", "Once")
    wrong = run(environ, "--dtype", "float31", "Once upon a time")
    broken = run(environ | {"TGIS_FAULT": "shard0:exit@load"}, *REHEARSAL, "Once upon a time")

    assert (missing.returncode, missing.stdout) == (3, "")
    assert missing.stderr.startswith("tgis: Model no/model not found: ")
    assert missing.stderr.endswith("run `tgis download-weights no/model` first.\n")
    (log,) = (tmp_path / ".local/state/tgis/run-logs").iterdir()  # of the run that says more there
    assert broken.stderr.endswith(f"The log is in {log}.\n")
    assert (broken.returncode, broken.stdout) == (5, "")
    assert broken.stderr.splitlines()[-1].startswith("tgis: shard-0 ")
    assert (wrong.returncode, wrong.stderr.count("\n")) == (2, 1)
    assert "--dtype is 'float31'" in wrong.stderr


def test_verbose_shows_the_log_on_a_terminal_as_launch_does_and_keeps_it_in_the_file(
    environ: dict[str, str], tmp_path: Path
):
    with open_terminal(80) as terminal:
        process = terminal.start([TGIS, "run", "-v", *REHEARSAL, "Once upon a time"], environ)
        assert process.wait(DEADLINE_S) == 0
        terminal.wait_for(lambda screen: any("launcher  stopped" in line for line in screen.lines))

    assert " | " not in terminal.raw
    [log] = (tmp_path / ".local/state/tgis/run-logs").iterdir()
    assert log.stat().st_mode & 0o777 == 0o600
    assert log.read_text().endswith("info    stopped\n")


def test_a_wrong_request_is_refused_before_anything_starts(environ: dict[str, str], tmp_path: Path):
    empty = run(environ, *REHEARSAL)
    out_of_range = run(environ, "--rehearse", "--top-p", "7", "Once upon a time")

    assert (empty.returncode, out_of_range.returncode) == (2, 2)
    assert not (tmp_path / ".local").exists()


def test_ctrl_c_in_the_loop_ends_only_the_answer_and_leaving_ends_the_server(environ: dict[str, str]):
    with nothing_left(environ) as note, open_terminal(100) as terminal:
        process = terminal.start([TGIS, "run", *ENDLESS], environ)
        wait_for(terminal, has_prompt)
        note(process)
        terminal.type("Once\n")
        wait_for(terminal, lambda screen: len(screen.lines[-1]) > 20)
        terminal.type("\x03")
        wait_for(terminal, lambda screen: has_prompt(screen) and "stopped with Ctrl-C" in screen.lines[-2])
        terminal.type("half a line")
        wait_for(terminal, lambda screen: screen.lines[-1] == ">>> half a line")
        terminal.type("\x03")
        wait_for(terminal, lambda screen: screen.lines[-2:] == [">>> half a line", ">>>"])
        terminal.type("\x03")
        wait_for(terminal, lambda screen: "/bye leaves." in " ".join(screen.lines) and has_prompt(screen))
        terminal.type("/set max_new_tokens 3\n")
        wait_for(terminal, lambda screen: screen.lines[-2:] == ["max_new_tokens is 3.", ">>>"])
        terminal.type("/retry\n")
        wait_for(terminal, lambda screen: "cut at 3 tokens: /set max_new_tokens" in " ".join(screen.lines[-2:]))
        terminal.type("/bye\n")
        assert process.wait(DEADLINE_S) == 0


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGHUP], ids=lambda number: number.name)
def test_no_process_outlives_a_run_that_is_killed_during_an_answer(environ: dict[str, str], number: signal.Signals):
    with nothing_left(environ) as note:
        process = subprocess.Popen([TGIS, "run", *ENDLESS, "Once upon"], env=environ, stdout=subprocess.PIPE)
        with process:
            assert process.stdout.read(1)
            note(process)
            process.send_signal(number)
            assert process.wait(DEADLINE_S) == (-number if number is signal.SIGKILL else 129)


def test_closing_the_terminal_ends_the_loop_and_its_server(environ: dict[str, str]):
    master, slave = pty.openpty()
    with nothing_left(environ) as note:
        process = subprocess.Popen(
            [TGIS, "run", *REHEARSAL],
            env=environ,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(slave)
        shown = b""
        while not shown.endswith(b">>> "):
            shown += os.read(master, 4096)
        note(process)
        os.close(master)
        assert process.wait(DEADLINE_S) in (0, 129)  # the end of input, or SIGHUP


def test_ctrl_c_stops_a_server_that_is_still_starting(environ: dict[str, str]):
    environ |= {"TGIS_FAULT": "shard0:hang@load"}
    with nothing_left(environ) as note, open_terminal(100) as terminal:
        process = terminal.start([TGIS, "run", *REHEARSAL, "Once upon"], environ)
        wait_until(lambda: len(descendants(process)) > 2, "the launcher to start processes", DEADLINE_S)
        note(process)
        terminal.type("\x03")
        assert process.wait(DEADLINE_S) == 130


def test_a_launcher_whose_parent_has_ended_meanwhile_ends_at_once():
    command = make_command("-m", "tgis_cli.attached", str(os.getppid()), "{}")

    assert subprocess.run(command, timeout=DEADLINE_S, check=False).returncode == EXIT_ORPHANED


def test_a_server_that_dies_ends_the_loop_with_the_cause(environ: dict[str, str]):
    environ |= {"TGIS_FAULT": "shard0:kill@step3"}
    with open_terminal(200) as terminal:
        process = terminal.start([TGIS, "run", *ENDLESS], environ)
        wait_for(terminal, has_prompt)
        terminal.type("Once\n")
        assert process.wait(DEADLINE_S) == 5
        shown = " ".join(terminal.close().lines)

    assert "tgis: shard-0 was killed by SIGKILL" in shown
    assert "The log is in " in shown
