"""Mistyped command lines: one sentence that says what was meant, and the right exit code. Nothing starts."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

from in_process import run_in_process
from tgis_cli import grpc_healthcheck
from tgis_cli.clients import probe


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """A cache with one model, which is broken, so that nothing can be started."""
    (tmp_path / "models--org--small").mkdir()
    return tmp_path


def type_line(line: str, cache: Path) -> subprocess.CompletedProcess[bytes]:
    words = [word.strip('"') for word in line.replace('"- item"', '"-\0item"').split()]
    environ = {"HF_HUB_CACHE": str(cache), "HOME": str(cache), "TMPDIR": str(cache), "PATH": "/usr/bin:/bin"}
    return run_in_process(*(word.replace("\0", " ") for word in words), environ=environ)


COMMANDS = [
    ("lanch", "did you mean `tgis launch`?"),
    ("LAUNCH", "did you mean `tgis launch`?"),
    ("--launch", "did you mean `tgis launch`?"),
    ("serve", "did you mean `tgis launch`?"),
    ("download x", "did you mean `tgis download-weights`?"),
    ("pull x", "did you mean `tgis download-weights`?"),
    ("ls", "did you mean `tgis models`?"),
    ("rm x", "did you mean `tgis models rm`?"),
    ("models delete x", "did you mean `tgis models rm`?"),
    ("models ls", "did you mean `tgis models`?"),
    ("models foo", "the only one is rm."),
    ("genrate hi", "did you mean `tgis generate`?"),
    ("tokenise hi", "did you mean `tgis tokenize`?"),
    ("status", "did you mean `tgis health`?"),
    ("completion", "did you mean `tgis --install-completion`?"),
    ("config sow", "did you mean `tgis config show`?"),
    ("help lanch", "did you mean `tgis launch`?"),
    ("bench serve", "did you mean `tgis bench load`?"),
    ("bench throughput", "did you mean `tgis bench engine`?"),
    ("bench demo", "did you mean `tgis bench load --launch demo`?"),
    ("xyzzy", "`tgis --help` lists the commands."),
]
OPTIONS = [
    ("launch --nope", "`tgis launch --help` lists the options."),
    ("launch --rehears", "did you mean --rehearse?"),
    ("launch --grpc_port 1", "did you mean --grpc-port?"),
    ("launch -port 1", "did you mean --port?"),
    ("launch -x", "No such option: -x; `tgis launch --help` lists the options."),
    ("launch -vx", "No such option: -x; `tgis launch --help` lists the options."),
    ("launch --model x", "give the model without an option: `tgis launch MODEL`."),
    ("launch --tensor-parallel-size 2", "use --num-shard INT instead."),
    ("run --max-batch-size 1", "set MAX_BATCH_SIZE in the environment, or max_batch_size in a file for --config."),
    ("run --grpc-port 1", "it is an option of `tgis launch`."),
    ("launch --temperature 1", "it is an option of `tgis run`."),
    ("launch --debug", "it goes before the command: `tgis --debug ...`."),
    ("generate -max-new-tokens 5 hi", "did you mean --max-new-tokens?"),
    ("generate --max_new_tokens=5 hi", "did you mean --max-new-tokens?"),
    ("generate --maxnewtokens 5 hi", "did you mean --max-new-tokens?"),
    ("generate --max-tokens 5 hi", "use --max-new-tokens N instead."),
    ("generate --num-shard 2", "it is an option of `tgis launch`."),
    ("generate --port 1 hi", "use --url HOST:PORT instead."),
    ("generate --model x hi", "leave it out: a server has only one model."),
    ('generate "- item"', "if it is meant as a text, write `--` before it."),
    ("generate -5", "if it is meant as a text, write `--` before it."),
    ("health --port 1", "use --url URL instead."),
    ("health --host x", "use --url URL instead."),
    ("health --nope", "`tgis health --help` lists the options."),
    ("health -url x", "did you mean --url?"),
    ("stop --force", "use --now instead."),
    ("doctor --gpu H100", "it is an option of `tgis plan`."),
    ("plan --gpus 2", "use --gpu GPU instead."),
    ("--all stop", "it goes after the command: `tgis COMMAND --all`."),
    ("config --num-shard 2 show", "it is an option of `tgis config show`."),
    ("models --jsn", "did you mean --json?"),
    ("bench --launch demo --num-shard 1", 'as in --launch "MODEL --num-shard ...".'),
    ("bench ab --a demo --num-shard 1", 'as in --a "MODEL --num-shard ...".'),
    ("bench --model demo", "--launch MODEL starts a server."),
    ("bench --num-prompts 5", "use --requests N instead."),
    ("bench load -c 5", "use --concurrency N,N,... instead."),
]
VALUES = [
    ("launch --port", "--port needs a value; `tgis launch --help` shows what is accepted."),
    ("launch --port=", "--port is '', but must be an integer from 0 to 65535."),
    ("launch --json-output=x", "--json-output takes no value; `tgis launch --help` shows what is accepted."),
    ("launch --dtype float61", "Did you mean float16?"),
    ("launch --log-level inof", "Did you mean info?"),
    ("launch --restart onfailure", "Did you mean on-failure?"),
    ("health --probe liv", "--probe is 'liv', but must be one of ready, live, startup. Did you mean live?"),
    ("health --timeout", "--timeout needs a value; `tgis health --help` shows what is accepted."),
    ("generate --wait 5 hi", "write --wait-timeout 5. If 5 begins the text, write the text before --wait."),
    ("generate hi --wait=2.5s", "--wait takes no value: write --wait-timeout 2.5."),
    ("generate --parallel x hi", "--parallel must be an integer from 1 to 1024."),
    ("download-weights x --stall-timeout x", "--stall-timeout must be a number of at least 1."),
    ("bench --arrival foo", "--arrival is 'foo', but must be one of poisson, constant."),
    ("bench --duration inf", "--duration is inf, but must be a number of seconds above 0, such as 10."),
    ("bench --warmup 1001", "--warmup must be an integer from 0 to 1000."),
    ("plan --gpu H1000", "did you mean H100?"),
    ("plan --gpu 2xA100", "did you mean A100-40 or A100-80?"),
    ("plan --gpu MI300X", "models run on NVIDIA GPUs and CPUs only"),
]
ARGUMENTS = [
    ("bundle org/small", "TARGET is missing: `tgis bundle MODEL TARGET`."),
    ("migrate", "FILE is missing: `tgis migrate FILE...`."),
    ("models rm", "MODEL is missing: `tgis models rm MODEL`."),
    ("tokenize a b", "Too many arguments: b is not expected in `tgis tokenize [TEXT]`."),
    ("tokenize a b c", "a text with blanks needs quotes."),
    ("health redy", "Too many arguments: redy is not expected in `tgis health`."),
    ("launch a b", "Too many arguments: b is not expected in `tgis launch [MODEL]`."),
]
NAMES = [
    ("launch org/smal", "or use org/small, which the cache has."),
    ("launch small", "or use org/small, which the cache has."),
    ("launch dmeo", "`tgis download-weights dmeo` first. Did you mean demo?"),
    ("tokenize hi --model Demo", "Did you mean demo?"),
    ("models rm org/smal -y", "did you mean org/small?"),
]


@pytest.mark.parametrize(("line", "sentence"), [*COMMANDS, *OPTIONS, *VALUES, *ARGUMENTS])
def test_a_mistyped_line_is_explained_in_one_sentence(line: str, sentence: str, cache: Path) -> None:
    result = type_line(line, cache)

    assert (result.returncode, result.stdout) == (2, b"")
    assert result.stderr.decode().startswith("tgis: ")
    assert sentence in result.stderr.decode()
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize(("line", "sentence"), NAMES)
def test_a_mistyped_model_is_explained_by_those_that_exist(line: str, sentence: str, cache: Path) -> None:
    result = type_line(line, cache)

    assert result.returncode == 3
    assert sentence in result.stderr.decode()


def test_the_page_about_commands_shows_their_real_messages(cache: Path) -> None:
    text = (Path(__file__).parents[3] / "docs/commands.md").read_text()
    shown = re.findall(r"^\$ tgis (\w.*)\n(tgis: .*)$", text, re.MULTILINE)

    assert len(shown) >= 4
    assert [type_line(line, cache).stderr.decode().strip() for line, _ in shown] == [answer for _, answer in shown]


def test_both_ways_to_parse_a_command_line_say_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        probe.main(["--timout", "3"], {})
    with pytest.raises(SystemExit):
        grpc_healthcheck.main(["--url", "x"])

    assert capsys.readouterr().err.splitlines() == [
        "tgis: No such option: --timout; did you mean --timeout?",
        "tgis: No such option: --url; use --server-url HOST:PORT instead.",
    ]


# As JSON


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("lanch --json", {"error": "No such command: lanch; did you mean `tgis launch`?", "exit_code": 2}),
        ("ps --json --al", {"error": "No such option: --al; `tgis ps --help` lists the options.", "exit_code": 2}),
        ("health --json --nope", {"error": "No such option: --nope; `tgis health --help` lists the options."}),
        ("tokenize --json a b", {"exit_code": 2}),
        ("generate --json --url nonsense hi", {"exit_code": 2}),
        ("generate --json --url 127.0.0.1:1 hi", {"exit_code": 1}),
        ("health --json --url 127.0.0.1:1", {"exit_code": 1}),
        ("plan --json --gpu x", {"exit_code": 2}),
        ("plan --json ./nowhere", {"exit_code": 3}),
        ("models rm --json nosuch", {"exit_code": 3}),
        ("migrate --json nosuch.yaml", {"exit_code": 2}),
        ("--help --json", {"error": "No such option: --json; it goes after the command: `tgis COMMAND --json`."}),
        ("version --json now", {"error": "Too many arguments: now is not expected in `tgis version`."}),
        ("bundle --json", {"event": "failed", "text": "MODEL is missing: `tgis bundle MODEL TARGET`.", "exit_code": 2}),
        ("unbundle --json nosuch.tar", {"event": "failed", "exit_code": 2}),
        ("download-weights --json --paralel 2 x", {"event": "failed", "exit_code": 2}),
        ("convert-to-safetensors --json ./nowhere", {"event": "failed", "exit_code": 3}),
    ],
)
def test_with_json_a_failure_is_also_one_object(line: str, told: dict[str, object], cache: Path) -> None:
    result = type_line(line, cache)

    (object_line,) = result.stdout.splitlines()
    failure = json.loads(object_line)
    assert failure | told == failure
    assert failure["exit_code"] == result.returncode
    assert result.stderr.decode() == f"tgis: {failure.get('error') or failure.get('text')}\n"


@pytest.mark.parametrize("line", ["help help", "help --json"])
def test_the_only_help_on_help_is_the_table(line: str, cache: Path) -> None:
    result = type_line(line, cache)

    assert (result.returncode, result.stderr) == (0, b"")
    assert result.stdout == type_line("--help", cache).stdout


@pytest.mark.parametrize("line", ["config show --json ./nowhere", "plan --json --cpu 2MiB"])
def test_a_problem_that_a_json_report_contains_gets_no_object_of_its_own(line: str, cache: Path) -> None:
    result = type_line(line, cache)

    report = json.loads(result.stdout)
    assert result.returncode in (3, 4)
    assert f"tgis: {report.get('error') or report.get('problem')}\n" == result.stderr.decode()


def test_a_bundle_on_stdout_is_never_followed_by_json(cache: Path) -> None:
    assert type_line("bundle --json ./nowhere -", cache).stdout == b""


def test_json_after_the_end_of_the_options_is_a_text(cache: Path) -> None:
    assert type_line("generate --nope -- --json", cache).stdout == b""
