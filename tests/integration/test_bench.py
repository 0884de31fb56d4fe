"""`tgis bench load` on real servers. What the generator says of itself depends on the machine; the rest does not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from shards import wait_until

TGIS = Path(sys.executable).parent / "tgis"
DEADLINE_S = 60
SHORT = ("--concurrency", "2", "--requests", "6", "--output-tokens", "8", "--warmup", "1")
ENDLESS = ("--concurrency", "2", "--duration", "600", "--output-tokens", "400", "--warmup", "0")
GENERATOR = "generator"  # a word of what a busy machine may add to a result


@pytest.fixture(scope="module")
def server(start_shared: Callable[..., Any]) -> Any:
    return start_shared("--rehearse", "--rehearse-step-ms", "2").wait_until_ready()


def bench(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    return subprocess.run(
        [TGIS, "bench", *arguments],
        env=kept | environ,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )


def measure(*arguments: str) -> dict[str, Any]:
    """The result, whose exit code must be that of its problems."""
    ended = bench(*arguments, "--json", "-")
    result: dict[str, Any] = json.loads(ended.stdout)
    assert ended.returncode == (1 if result["problems"] else 0), ended.stderr
    assert all(GENERATOR in problem for problem in result["problems"])
    return result


def only_level(result: dict[str, Any]) -> dict[str, Any]:
    (level,) = result["detail"]["levels"]
    return dict(level)


def start_endless(server: Any, path: Path) -> subprocess.Popen[str]:
    """A load whose streams are running: counting tokens, before that, is one call at a time."""
    process = subprocess.Popen(
        [TGIS, "bench", "--url", server.address, *ENDLESS, "--json", str(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
    )
    wait_until(lambda: count_calls(server) == 2, "both streams", deadline_s=DEADLINE_S)
    return process


def count_calls(server: Any) -> int:
    with urllib.request.urlopen(f"{server.facts['http']}/health/live") as answer:
        return int(json.load(answer)["calls_in_flight"])


def children(pid: int) -> list[psutil.Process]:
    return psutil.Process(pid).children(recursive=True)


def test_streams_have_exactly_the_tokens_that_were_asked_for(server: Any):
    result = measure("--url", server.address, *SHORT, "--input-tokens", "20:60")

    level = only_level(result)
    assert (level["title"], level["sent"], level["failed"], level["wrong_counts"]) == ("2 streams", 6, 0, 0)
    assert level["server"]["output_tokens"] == 48
    assert set(level["latencies"]) == {"ttft", "itl", "tpot", "e2e"}
    assert result["fingerprint"]["server"]["rehearse_step_ms"] == 2.0
    assert result["fingerprint"]["model"]["max_sequence_length"] == 2048


def test_a_seed_that_was_used_before_is_noted(server: Any):
    notes = [measure("--url", server.address, *SHORT, "--seed", "7")["notes"] for _ in range(2)]

    assert ["same --seed" in " ".join(each) for each in notes] == [False, True]


def test_unary_calls_have_several_prompts(server: Any):
    level = only_level(measure("--url", server.address, *SHORT, "--inputs-per-call", "3"))

    assert (level["is_streamed"], level["sent"], level["wrong_counts"]) == (False, 6, 0)
    assert level["server"]["inputs"] == 18
    assert set(level["latencies"]) == {"e2e"}


def test_a_trace_is_replayed_when_it_says(server: Any, tmp_path: Path):
    path = tmp_path / "trace.jsonl"
    path.write_text(
        "".join(json.dumps({"text": f"{n} a", "output_tokens": 3, "start_s": n / 5}) + "\n" for n in range(4))
    )

    level = only_level(measure("--url", server.address, "--prompts", str(path), "--speed", "2", "--warmup", "0"))

    assert (level["title"], level["sent"], level["wrong_counts"]) == ("trace", 4, 0)
    assert [call["due_s"] for call in level["waterfall"]] == pytest.approx([0.0, 0.1, 0.2, 0.3])


def test_a_server_is_launched_measured_and_stopped(tmp_path: Path):
    page = tmp_path / "page.html"
    before = {process.pid for process in psutil.process_iter()}

    ended = bench("--launch", "demo", *SHORT, "--html", str(page), TGIS_RUN_DIR=str(tmp_path))

    assert "2 streams" in ended.stdout
    assert page.read_text().startswith("<!doctype html>")
    assert list(tmp_path.glob("tgis-*")) == []
    left = [process for process in psutil.process_iter(["cmdline"]) if process.pid not in before]
    assert [each.pid for each in left if str(tmp_path) in " ".join(each.info["cmdline"] or ())] == []


def test_ctrl_c_ends_it_with_what_was_measured(server: Any, tmp_path: Path):
    process = start_endless(server, tmp_path / "r.json")
    workers = children(process.pid)

    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=DEADLINE_S)

    result = json.loads((tmp_path / "r.json").read_text())
    assert process.returncode == 130
    assert "2 streams" in out
    assert "Traceback" not in err
    assert (result["is_cut"], only_level(result)["is_cut"]) == (True, True)
    wait_until(lambda: not any(each.is_running() for each in workers), "the workers to be gone")
    wait_until(lambda: not count_calls(server), "the calls to be cancelled")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_server_that_dies_or_drains_ends_the_run_with_the_reason(
    start: Callable[..., Any], tmp_path: Path, number: signal.Signals
):
    server = start("--rehearse", "--rehearse-step-ms", "5", "--drain-timeout", "1").wait_until_ready()
    process = start_endless(server, tmp_path / "r.json")

    server.process.send_signal(number)
    _, err = process.communicate(timeout=DEADLINE_S)

    result = json.loads((tmp_path / "r.json").read_text())
    assert (process.returncode, result["is_cut"], "Traceback" in err) == (1, True, False)
    assert any("went away" in problem for problem in result["problems"])


@pytest.mark.parametrize(
    ("arguments", "sentence", "exit_code"),
    [
        (("--url", "{http}"), "is a TGIS server's HTTP port; its gRPC port is", 1),
        (("--url", "{grpc}", "--metrics-url", "{grpc}"), "tgis: ", 1),
        (("--url", "{grpc}", "--metrics-url", "http://127.0.0.1:1"), "--metrics-url has to name the server's HTTP", 1),
        (("--url", "127.0.0.1:1"), "No server at 127.0.0.1:1", 1),
        (("--url", "{grpc}", "--output-tokens", "5000"), "allows at most 1,024 new tokens per answer", 2),
        (("--url", "{grpc}", "--prompts", "/none.jsonl"), "--prompts /none.jsonl cannot be read", 2),
        (("--launch", "demo", "--url", "{grpc}"), "Give either --launch or the options of a running server", 2),
        (("--launch", "demo --port 3000"), "--launch has --port, which `tgis bench` sets itself", 2),
    ],
)
def test_bad_input_is_a_sentence(server: Any, arguments: tuple[str, ...], sentence: str, exit_code: int):
    places = {"grpc": server.address, "http": server.facts["http"].removeprefix("http://")}

    ended = bench(*(argument.format(**places) for argument in arguments))

    assert (ended.returncode, ended.stdout) == (exit_code, "")
    assert ended.stderr.startswith("tgis: ")
    assert sentence in ended.stderr
