"""The original's executables: what they accept, and what they report if something no longer works as it did."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tgis_cli.decide.legacy_commands import TOOLS, count_shards, make_launcher
from tgis_cli.legacy import launch
from tgis_cli.terminal.command_table import COMMANDS, load_command
from tgis_server.errors import UsageError

BIN = Path(sys.executable).parent
RENDEZVOUS = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}


def run(program: str, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    environ |= {"PATH": "/usr/bin:/bin"}
    return subprocess.run(
        [BIN / program, *arguments], env=environ, capture_output=True, text=True, timeout=20, check=False
    )


def test_the_world_size_is_the_number_of_shards():
    assert count_shards(RENDEZVOUS) == "2"


@pytest.mark.parametrize("name", RENDEZVOUS)
def test_a_sharded_server_needs_its_rendezvous(name: str):
    with pytest.raises(UsageError, match=f"{name} must be set when sharded is True"):
        count_shards(RENDEZVOUS | {name: ""})


def test_only_the_first_rank_starts_a_server():
    with pytest.raises(UsageError, match="RANK is 1, but rank 0 starts all 2 shards"):
        count_shards(RENDEZVOUS | {"RANK": "1"})


@pytest.mark.parametrize("program", ["text-generation-launcher", "text-generation-server"])
def test_the_entry_point_of_the_image_runs_the_program_that_a_pod_names_first(program: str):
    as_argument, by_name = run("tgis", program, "--no-such-option"), run(program, "--no-such-option")

    assert (as_argument.returncode, as_argument.stderr) == (2, by_name.stderr)


def test_a_missing_tool_is_refused_with_a_list_of_the_commands():
    result = run("text-generation-server", "quantize", "model", "target")

    assert result.returncode == 2
    assert "text-generation-server quantize is not part of this version, which has serve" in result.stderr
    assert ", ".join(COMMANDS) in result.stderr


@pytest.mark.parametrize(
    ("command", "flags"),
    [
        ("download-weights", "--revision --token --extension --auto-convert --no-auto-convert"),
        ("convert-to-safetensors", "--revision"),
        ("convert-to-fast-tokenizer", "--revision --output-path"),
        ("convert-to-onnx", "--revision --merge-graphs --optimize --provider"),
    ],
)
def test_the_originals_tools_accept_its_flags(command: str, flags: str):
    spellings = {text for option in load_command(command).params for text in (*option.opts, *option.secondary_opts)}

    assert set(flags.split()) <= spellings


def test_both_launchers_can_show_every_line_on_a_terminal():
    launchers = (load_command("launch"), make_launcher(launch))

    assert ["-v" in {name for param in each.params for name in param.opts} for each in launchers] == [True, True]


def test_the_originals_tools_are_listed():
    text = run("text-generation-server", "--help").stdout

    assert [name for name in ("serve", *TOOLS) if name not in text] == []


def test_the_launchers_help_names_the_newer_command():
    assert "tgis launch MODEL" in run("text-generation-launcher", "--help", COLUMNS="80").stdout


def test_the_launcher_accepts_every_flag_of_the_original():
    """All flags parse: the only complaint is about the last one's value."""
    flags = (
        "--model-name m --revision r --deployment-framework hf_custom_tp --dtype float16 --dtype-str float16 "
        "--num-shard 1 --max-concurrent-requests 1 --max-sequence-length 8 --max-new-tokens 2 --max-batch-size 1 "
        "--max-prefill-padding 0.1 --batch-safety-margin 20 --max-waiting-tokens 24 -p 3001 -g 8034 "
        "--shard-uds-path /tmp/s --master-addr localhost --master-port 29500 --json-output --tls-cert-path c "
        "--tls-key-path k --tls-client-ca-cert-path a --output-special-tokens -c 0.9 --default-include-stop-seqs true "
        "--otlp-endpoint http://o:4317 --otlp-service-name s --quantize gptq"
    )

    result = run("text-generation-launcher", *flags.split())

    assert (result.returncode, json.loads(result.stderr)["message"].split(":")[0]) == (2, "--quantize gptq")


@pytest.mark.parametrize(
    ("program", "arguments"),
    [
        ("text-generation-launcher", ["--model-name", "demo"]),
        ("text-generation-server", ["serve", "demo", "tgis_native"]),
    ],
)
def test_the_demo_model_is_not_served_by_its_name(program: str, arguments: list[str], tmp_path: Path):
    result = run(program, *arguments, HF_HUB_CACHE=str(tmp_path), TGIS_HOST="127.0.0.1", PORT="0", GRPC_PORT="0")

    assert result.returncode == 3
    assert "Failed to resolve config path: Model demo not found: the demo model is served by " in result.stderr
