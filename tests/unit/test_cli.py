"""The command line itself: it is fast, explains errors in a sentence, and is safe in a pipe."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from imports import run_and_list_imports
from tgis_cli.terminal.command_table import COMMANDS
from tgis_cli.terminal.exits import explain_error
from tgis_server.options import options

TGIS = Path(sys.executable).parent / "tgis"
HEAVY = ("torch", "transformers", "grpc", "tokenizers", "aiohttp", "numpy")
HELPS = ["", *COMMANDS, "config show", "config init"]
UNREACHABLE = "127.0.0.1:1"


def run_tgis(*arguments: str, stdin: str = "", **environ: str) -> subprocess.CompletedProcess[str]:
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    return subprocess.run(
        [TGIS, *arguments], input=stdin, env=kept | environ, capture_output=True, text=True, timeout=20, check=False
    )


@pytest.fixture(scope="module")
def helps() -> dict[str, str]:
    """The help of each command, followed by the heavy modules that it has imported.

    Each runs in its own process, forked from one that has imported no command.
    """
    program = (
        "import json, os, sys\n"
        "from tgis_cli.app import main\n"
        "for words in json.loads(sys.argv[1]):\n"
        "    if os.fork():\n"
        "        os.wait()\n"
        "        continue\n"
        "    sys.argv = ['tgis', *words, '--help']\n"
        "    try: main()\n"
        f"    except SystemExit: print([name for name in {HEAVY} if name in sys.modules], end='\\0')\n"
        "    sys.stdout.flush()\n"
        "    os._exit(0)\n"
    )
    command = [sys.executable, "-c", program, json.dumps([command.split() for command in HELPS])]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    return dict(zip(HELPS, result.stdout.split("\0")[:-1], strict=True))


@pytest.mark.parametrize("command", HELPS)
def test_help_imports_nothing_heavy(helps: dict[str, str], command: str):
    assert f"usage: tgis {command}".rstrip() in helps[command].lower()
    assert helps[command].splitlines()[-1] == "[]"


def test_listing_the_commands_imports_none_of_them():
    exit_code, imported = run_and_list_imports("--help", entry="app")

    assert not exit_code
    assert not [name for name in imported if name.startswith("tgis_cli.commands.")]


def test_launch_help_shows_every_option_in_full_at_80_columns():
    text = run_tgis("launch", "--help", COLUMNS="80").stdout

    shown = [option for option in options() if not option.opt.hidden]
    flags = {option.flag.replace("--", "--[no-]") if is_switch(option) else option.flag for option in shown}
    assert {flag for flag in flags if flag not in text} == set()
    assert "--fault" not in text


def is_switch(option) -> bool:
    return option.type is bool and not option.opt.takes_value


def test_a_launch_reports_a_wrong_command_line_as_an_event_and_in_the_termination_log(tmp_path: Path):
    result = run_tgis("launch", "--rehears", "--termination-log", str(tmp_path / "log"), JSON_OUTPUT="1")

    sentence = "No such option: --rehears; did you mean --rehearse?"
    assert result.returncode == 2
    assert json.loads(result.stderr)["message"] == sentence
    assert (tmp_path / "log").read_text() == sentence + "\n"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["launch", "a", "--model-name", "b"], "Two models are given, a and --model-name b: leave one out."),
        (["launch", "--port", "x"], "--port is 'x', but must be an integer from 0 to 65535."),
        (["launch", "--config", "/nowhere.toml"], "Config file /nowhere.toml cannot be read"),
        (["generate", "x", "--url", "nonsense"], "--url nonsense is not HOST:PORT"),
        (["generate", "x", "--url", UNREACHABLE, "--ca", "/nowhere"], "--ca /nowhere cannot be read"),
        (["tokenize", "x", "--url", UNREACHABLE, "--model", "m"], "Give either --model or the options of a server"),
    ],
)
def test_a_usage_error_is_reported_in_one_sentence_with_exit_code_2(arguments: list[str], sentence: str):
    result = run_tgis(*arguments)

    assert result.returncode == 2
    assert sentence in result.stderr
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize("command", ["generate", "tokenize"])
def test_without_a_server_commands_explain_how_to_start_one(command: str):
    result = run_tgis(command, "x", "--url", UNREACHABLE)

    assert result.returncode == 1
    assert result.stderr == (
        f"tgis: No server at {UNREACHABLE}: start one with `tgis launch`, or give the address with --url HOST:PORT.\n"
    )


def test_another_program_at_the_address_is_not_mistaken_for_a_missing_server():
    with socket.create_server(("127.0.0.1", 0)) as other:
        threading.Thread(target=close_all, args=(other,), daemon=True).start()
        address = f"127.0.0.1:{other.getsockname()[1]}"

        result = run_tgis("generate", "x", "--url", address)

    assert result.returncode == 1
    assert result.stderr == f"tgis: The process at {address} closes the connection: it does not speak gRPC.\n"


def close_all(listener: socket.socket) -> None:
    """Accept and close connections until the listener closes."""
    with contextlib.suppress(OSError):
        while True:
            listener.accept()[0].close()


def test_a_command_explains_what_the_machine_lacks_without_mentioning_run_directories():
    full, missing = (
        explain_error(OSError(number, os.strerror(number), "f"))[0] for number in (errno.ENOSPC, errno.ENOENT)
    )

    assert full.startswith("this command: there is no space left for f ")
    assert explain_error(MemoryError())[0].startswith("This command ran out of memory: ")
    assert missing.startswith("FileNotFoundError: ")


def test_debug_shows_a_traceback():
    assert "Traceback" in run_tgis("--debug", "generate", "x", "--url", "nonsense").stderr


def test_tokenize_reads_lines_and_shows_ids_with_a_local_tokenizer(demo_model_dir: Path):
    result = run_tgis("tokenize", "--model", str(demo_model_dir), "--json", stdin="hello\nworld\n")

    first, second = map(json.loads, result.stdout.splitlines())
    assert (first["text"], second["text"]) == ("hello", "world")
    assert first["count"] == len(first["pieces"]) == len(first["ids"])


def test_piped_tables_have_no_escape_sequences(demo_model_dir: Path):
    shown = run_tgis("config", "show", "--rehearse").stdout
    tokens = run_tgis("tokenize", "--model", str(demo_model_dir), "hello").stdout

    assert "\x1b" not in shown + tokens
    assert tokens.split("\t")[0].isdigit()


def test_a_piped_config_keeps_lines_whole_and_describes_the_defaults():
    lines = run_tgis("config", "show", "--rehearse").stdout.splitlines()

    (dtype,) = (line for line in lines if line.startswith("--dtype "))
    assert dtype.split(maxsplit=2)[2] == ("default: the checkpoint's, or float32 on a CPU on which that would be slow")
    assert [line for line in lines if line != line.rstrip()] == []


def test_config_show_names_the_origins(tmp_path: Path):
    file = tmp_path / "tgis.toml"
    file.write_text("max-batch-size = 7\n")

    result = run_tgis("config", "show", "--json", "--config", str(file), "--rehearse", PORT="1234")

    report = json.loads(result.stdout)
    picked = {name: report["options"][name] for name in ("max_batch_size", "rehearse", "port", "grpc_port")}
    assert picked == {
        "max_batch_size": {"value": 7, "origin": str(file)},
        "rehearse": {"value": True, "origin": "flag --rehearse"},
        "port": {"value": 1234, "origin": "environment PORT"},
        "grpc_port": {"value": 8033, "origin": "default"},
    }
    assert report["inferred"]["engine"] == {"value": "fake", "reason": "a rehearsal"}


def test_config_show_calls_a_model_without_a_flag_an_argument():
    report = json.loads(run_tgis("config", "show", "--json", "no/such-model").stdout)

    assert report["options"]["model_name"] == {"value": "no/such-model", "origin": "argument MODEL"}
    assert report["error"].startswith("Model no/such-model not found: ")


def test_config_show_shows_the_options_even_if_the_model_is_missing():
    result = run_tgis("config", "show", "no/such-model")

    assert result.returncode == 3
    assert "--grpc-port" in result.stdout
    assert "Model no/such-model not found" in result.stderr


def test_a_closed_pipe_causes_no_error_message(demo_model_dir: Path):
    command = f"yes hello | {TGIS} tokenize --model {demo_model_dir} | head -1"

    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=20, check=False)

    assert (result.stdout.count("\n"), result.stderr) == (1, "")


@pytest.fixture
def demo_model_dir() -> Path:
    from tgis_cli.model_files import DEMO_MODEL_DIR

    return DEMO_MODEL_DIR
