"""Environments that containers and service managers create: without a home or rights, with odd streams and limits."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

import tgis_server
from shards import wait_until

Start = Callable[..., Any]  # starts a Server of conftest.py

BIN = Path(sys.executable).parent
DEMO_MODEL = Path(tgis_server.__file__).parent / "demo_model"
CONFINE = f"python {Path(__file__).with_name('hostile.py')} {{base}} 1000730000"
NO_USER = (
    "env -u HOME -u LANG -u TZ -u TMPDIR -u TGIS_RUN_DIR"
    " PYTHONDONTWRITEBYTECODE=1 PYTHONHASHSEED=7 PYTHONSTARTUP=/nowhere PYTHONWARNINGS=default"
    " TGIS_CPU_OPS=reference"  # without a cache, a checkout compiles the operations at every start
)
TIMEOUT_S = 30.0


@pytest.fixture(scope="module")
def confined(start_shared: Start, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A server that has only what it needs; its ``base`` is mounted as its /tmp."""
    trial = run_confined(tmp_path_factory.mktemp("trial"), "true")
    if trial.returncode:
        pytest.skip(f"private mounts are not permitted here: {trial.stderr.splitlines()[-1]}")
    server = start_shared(
        *("--model-name", str(DEMO_MODEL), "--num-shard", "2", "--max-sequence-length", "64"),
        script=f"{CONFINE} {NO_USER} {BIN}/text-generation-launcher",
    )
    return server.wait_until_ready()


def run_confined(base: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a command under the same conditions."""
    words = [*CONFINE.format(base=base).split(), *NO_USER.split(), *command]
    return subprocess.run([BIN / words[0], *words[1:]], capture_output=True, text=True, timeout=TIMEOUT_S, check=False)


@pytest.fixture
def script() -> Iterator[Callable[[str], str]]:
    """Write a script to be started instead of ``tgis launch``; its text may run that command as ``$LAUNCH``."""
    with tempfile.TemporaryDirectory(prefix="t-") as directory:

        def write(text: str) -> str:
            file = Path(directory, "start")
            file.write_text(f'#!/bin/sh\nLAUNCH="{BIN}/tgis launch --rehearse --host 127.0.0.1"\n{text}\n')
            file.chmod(0o700)
            return str(file)

        yield write


# -- any user, nothing writable but /tmp


def test_a_user_without_a_name_a_home_or_rights_can_serve(confined: Any):
    answer = confined.run("generate", "Größe", "--json")

    assert json.loads(answer.stdout)["generated_token_count"] > 0


@pytest.mark.parametrize(
    "words", [("--help",), ("config", "show"), ("version",), ("tokenize", "Größe"), ("generate", "Größe"), ("health",)]
)
def test_that_user_can_run_other_commands(confined: Any, words: tuple[str, ...]):
    address = {"health": confined.facts["http"], "tokenize": confined.address, "generate": confined.address}
    url = ["--url", address[words[0]]] if words[0] in address else []

    done = run_confined(confined.base, str(BIN / "tgis"), *words, *url)

    assert (done.returncode, done.stderr) == (0, "")


def test_that_user_is_told_where_a_hub_id_was_looked_for(confined: Any):
    done = run_confined(confined.base, str(BIN / "tgis"), "launch", "org/name")

    assert done.returncode == 3
    assert "HOME is not set, and user 1000730000 has no home directory: name the cache with HF_HUB_CACHE" in done.stderr
    assert done.stderr.count("\n") == 1


def test_that_user_is_told_which_file_of_a_model_cannot_be_read(confined: Any, tmp_path: Path):
    model = shutil.copytree(DEMO_MODEL, confined.base / "model")
    (model / "model.safetensors").chmod(0o600)

    done = run_confined(confined.base, str(BIN / "tgis"), "launch", "/tmp/model")
    shutil.rmtree(model)

    assert done.returncode == 3
    assert "/tmp/model/model.safetensors cannot be read (Permission denied)" in done.stderr


def test_that_user_can_stop_the_server_and_nothing_is_left_in_tmp(confined: Any):
    assert confined.stop() == 0

    place_of_repository = Path(__file__).parts[2]  # needed only if the repository is in /tmp
    assert {path.name for path in confined.base.iterdir()} - {place_of_repository} == {"stdout", "stderr"}


# -- streams and locale


@pytest.mark.parametrize(
    "closed",
    [
        *(pytest.param(stream, marks=pytest.mark.acceptance) for stream in ("<&-", "2>&-")),
        ">&-",
        "<&- >&- 2>&-",
    ],
)
def test_a_server_runs_with_closed_streams(launch: Start, script: Callable[[str], str], closed: str):
    server = launch(script=script(f'exec $LAUNCH "$@" {closed}'))

    assert server.stop() == 0


def test_umlauts_work_in_the_c_locale_but_bytes_that_are_not_text_are_refused(launch: Start):
    server = launch("--rehearse", LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")
    answer = server.run("generate", "Größe", "--json")
    refusal = server.run("generate", "Gr\udcf6\udcdfe")

    assert json.loads(answer.stdout)["generated_token_count"] > 0
    assert refusal.returncode == 2
    assert refusal.stderr.startswith("tgis: The text is not UTF-8")


def test_a_shadowing_module_in_pythonpath_is_named_as_a_suspect(start: Start, tmp_path: Path):
    (tmp_path / "grpc.py").write_text("raise RuntimeError('not the real one')")
    server = start("--rehearse", PYTHONPATH=str(tmp_path))

    assert server.wait() == 1
    assert server.last_line.startswith("tgis: RuntimeError: not the real one. This is a bug, unless PYTHONPATH shadows")


# -- limits


def test_64_open_files_are_enough_for_four_shards(launch: Start, script: Callable[[str], str]):
    assert launch("--num-shard", "4", script=script('ulimit -n 64; exec $LAUNCH "$@"')).stop() == 0


@pytest.mark.parametrize(
    ("limit", "exit_code", "sentence"),
    [("-n 20", 5, "too many files and connections are open"), ("-v 300000", 4, "A process may use only 293 MiB")],
)
def test_a_limit_that_is_too_low_is_named(
    start: Start, script: Callable[[str], str], limit: str, exit_code: int, sentence: str
):
    server = start("--num-shard", "4", script=script(f'ulimit {limit}; exec $LAUNCH "$@"'))

    assert server.wait() == exit_code
    assert sentence in server.last_line
    assert server.run_dir is None


# `ulimit -u` does not apply to root, and another user may not be able to read the modules that Python imports.
OTHER_USER = "setpriv --reuid 1000740000 --regid 0 --clear-groups --inh-caps +dac_override --ambient-caps +dac_override"


@pytest.mark.parametrize(
    ("limit", "options", "exit_code", "sentence"),
    [
        (12, (), 4, "`ulimit -u` allows 12 processes and threads, of which other programs use 0, but 1 shard(s), the"),
        (12, ("--skip-preflight",), 5, "no more processes or threads can be started, and `ulimit -u` allows 12"),
        (26, ("--skip-preflight",), 5, "no more processes or threads can be started, and `ulimit -u` allows 26"),
    ],
)
def test_too_few_threads_end_a_start_with_a_sentence_that_names_the_limit(
    start: Start, script: Callable[[str], str], limit: int, options: tuple[str, ...], exit_code: int, sentence: str
):
    if os.getuid() or not shutil.which("setpriv"):
        pytest.skip("another user is needed")
    file = script(f'exec {OTHER_USER} prlimit --nproc={limit} $LAUNCH "$@"')
    Path(file).parent.chmod(0o777)

    server = start("--num-shard", "1", *options, script=file, TGIS_RUN_DIR=str(Path(file).parent))

    assert server.wait() == exit_code
    assert sentence in server.last_line


# -- process 1 of a container

FIRST = "/usr/bin/unshare --pid --fork --mount-proc --kill-child"


@pytest.fixture
def _may_be_first() -> None:
    trial = subprocess.run([*FIRST.split(), "true"], capture_output=True, text=True, check=False)
    if trial.returncode:
        pytest.skip(f"process namespaces are not permitted here: {trial.stderr}")


@pytest.mark.usefixtures("_may_be_first")
def test_as_process_1_a_launcher_reaps_orphans_and_stops_on_sigterm(
    start: Start, script: Callable[[str], str], tmp_path: Path
):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    launcher = script(f'(cat {pipe} &); exec $LAUNCH "$@"')
    server = start(script=f"{FIRST} {launcher}").wait_until_ready()
    first = psutil.Process(server.process.pid).children()[0]
    orphan = next(child for child in first.children() if child.name() == "cat")

    pipe.write_text("")
    wait_until(lambda: not psutil.pid_exists(orphan.pid), "the orphan to be reaped")
    first.send_signal(signal.SIGTERM)

    assert server.wait() == 0


@pytest.mark.usefixtures("_may_be_first")
def test_as_process_1_any_command_ends_on_sigterm():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"127.0.0.1:{silent.getsockname()[1]}"
        with subprocess.Popen([*FIRST.split(), BIN / "tgis", "generate", "--url", url, "x"]) as outer:
            silent.accept()[0].close()
            psutil.Process(outer.pid).children()[0].terminate()

    assert outer.returncode == 128 + signal.SIGTERM
