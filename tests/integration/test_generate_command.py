"""`tgis generate` against a real server, on pseudo-terminals and in pipes."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from screens import open_terminal
from shards import wait_until

TGIS = Path(sys.executable).parent / "tgis"
ENVIRON = {"TERM": "xterm", "LANG": "C.UTF-8"}
ENDLESS = ("--max-new-tokens", "900")  # at 10 ms per token: longer than any test waits


@pytest.fixture(scope="module")
def server(start_shared: Callable[..., Any]) -> Any:
    return start_shared("--rehearse", "--rehearse-step-ms", "10", "--max-concurrent-requests", "4").wait_until_ready()


def find_free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def count_calls(server: Any) -> int:
    with urllib.request.urlopen(f"{server.facts['http']}/health/live") as answer:
        return int(json.load(answer)["calls_in_flight"])


def wait_until_idle(server: Any) -> None:
    wait_until(lambda: not count_calls(server), "the call to be cancelled", deadline_s=3)


def test_an_answer_on_a_terminal_ends_with_its_statistics(server: Any):
    with open_terminal(100) as terminal:
        process = terminal.start([TGIS, "generate", "--url", server.address, "Once", "upon", "--seed", "7"], ENVIRON)
        assert process.wait(20) == 0
        screen = terminal.close()

    assert screen.lines[0].startswith("Once upon")
    assert " · seed 7 · cut at 256 tokens: --max-new-tokens" in " ".join(screen.lines)
    assert screen.styled("2").startswith("Once upon")


def test_ctrl_c_cancels_the_call_and_leaves_the_text_so_far(server: Any):
    with open_terminal(100) as terminal:
        process = terminal.start([TGIS, "generate", "--url", server.address, "Once", *ENDLESS], ENVIRON)
        terminal.wait_for(lambda screen: len(screen.lines[0]) > len("Once") + 10)
        terminal.type("\x03")
        exit_code = process.wait(10)
        screen = terminal.close()

    assert exit_code == 130
    assert screen.lines[-2].endswith(" · stopped with Ctrl-C")
    assert screen.lines[-1] == ""
    wait_until_idle(server)


def test_a_closed_pipe_cancels_the_call(server: Any):
    command = f"{TGIS} generate --url {server.address} Once {' '.join(ENDLESS)} | head -c 1"

    result = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, timeout=20, check=False)

    assert (result.returncode, len(result.stdout), result.stderr) == (141, 1, b"")
    wait_until_idle(server)


def test_json_has_the_answer_and_its_tokens(server: Any):
    answer = json.loads(server.run("generate", "Once", "--json", "--max-new-tokens", "3", "--top-n", "2").stdout)

    assert (answer["stop_reason"], answer["generated_token_count"], len(answer["tokens"])) == ("MAX_TOKENS", 3, 3)
    assert {"text", "logprob", "rank", "top_tokens"} <= answer["tokens"][0].keys()


def test_the_lines_of_a_file_are_answered_in_order_even_if_more_run_at_once_than_the_server_accepts(
    server: Any, tmp_path: Path
):
    file = tmp_path / "prompts.jsonl"
    lines = [{"text": f"prompt {number}", "max_new_tokens": 8 - number % 5} for number in range(12)]
    lines[5]["truncate_input_tokens"] = 0
    lines[7]["max_new_tokens"] = 1_000_000
    file.write_text("\n".join(map(json.dumps, lines)))

    result = server.run("generate", "--json", "--file", str(file), "--parallel", "12")

    answers = [json.loads(line) for line in result.stdout.splitlines()]
    assert [answer["line"] for answer in answers] == list(range(1, 13))
    assert [answer.get("generated_token_count") for answer in answers] == [
        None if number == 7 else 8 - number % 5 for number in range(12)
    ]
    assert "max_new_tokens must be <= " in answers[7]["error"]
    assert (result.returncode, result.stderr.splitlines()[-1]) == (1, "tgis: 1 of 12 answers failed.")


def test_several_answers_with_a_seed_are_reproducible_and_differ(server: Any):
    first, again = (server.run("generate", "Once", "-n", "3", "--seed", "7").stdout for _ in range(2))

    assert first == again
    assert len(set(first.splitlines())) == 3


def test_a_length_above_the_limit_of_the_server_is_a_usage_error(server: Any):
    result = server.run("generate", "Once", "--max-new-tokens", "1000000")

    assert result.returncode == 2
    assert result.stderr.startswith("tgis: --max-new-tokens is 1000000, but this server allows at most ")


def test_a_text_that_is_too_long_is_refused_with_its_length_and_a_remedy(server: Any):
    result = server.run("generate", "x" * 10_000)

    assert result.returncode == 1
    assert re.fullmatch(
        r"tgis: The text has \d+ tokens, but text and answer may have only \d+ together: shorten it, or keep its end "
        r"with --truncate-input-tokens\.\n",
        result.stderr,
    )


def test_wait_may_start_before_the_server_and_generates_once_it_is_ready(start: Callable[..., Any]):
    port = find_free_port()
    with subprocess.Popen(
        [TGIS, "generate", "--wait", "--wait-timeout", "60", "--url", f"127.0.0.1:{port}", "--json", "Once"],
        env=ENVIRON,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as client:
        try:
            first_line = client.stderr.readline()
            start("--rehearse", GRPC_PORT=str(port))
            answer, _ = client.communicate(timeout=30)
        finally:
            client.kill()

    assert first_line.startswith(f"Waiting for a server at 127.0.0.1:{port}")
    assert json.loads(answer)["generated_token_count"] == 20
