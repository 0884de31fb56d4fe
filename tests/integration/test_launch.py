"""`tgis launch`: how it becomes ready, what it prints, and what it refuses."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import tgis_server
from terminals import pseudo_terminal
from tgis_cli.decide.legacy_settings import Treatment
from tgis_cli.migrate import examine_all, read_containers, read_settings_file

Start = Callable[..., Any]  # starts a Server of conftest.py
MANIFEST = Path(__file__).parents[1] / "unit/migrate/manifests/original.yaml"
DEMO_MODEL = Path(tgis_server.__file__).parent / "demo_model"


@pytest.fixture
def short_path() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="t-") as path:
        yield Path(path)


@pytest.fixture
def full_pipe() -> Iterator[int]:
    """The write end of a full pipe."""
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(write_end, b"x" * 4096)
    os.set_blocking(write_end, True)
    yield write_end
    os.close(read_end)
    os.close(write_end)


@pytest.mark.serial
def test_a_rehearsal_of_four_shards_answers_and_leaves_nothing_behind(launch: Start):
    server = launch("--rehearse", "--num-shard", "4")
    answer = server.run("generate", "Once upon a time", "--json")
    exit_code = server.stop()

    assert json.loads(answer.stdout)["generated_token_count"] == 20
    assert list(server.facts["pids"]) == ["shard-0", "shard-1", "shard-2", "shard-3", "frontend"]
    assert server.facts["elapsed_s"] < 10
    assert exit_code == 0
    server.wait_until_gone(within_s=0)
    assert server.run_dir is None


def test_the_announcement_names_the_endpoints_the_rehearsal_and_a_first_request(launch: Start):
    server = launch("--rehearse", TGIS_URL="other:1")  # so that clients need the address
    server.stop()

    assert re.search(r"Ready in [\d.]+ s \(rehearsal\)", server.stdout)
    assert f'tgis generate --url {server.address} "Once upon a time"' in server.stdout
    assert f"{server.facts['http']}/health" in server.stdout
    assert "answers are made up" in server.stdout


def test_piped_output_has_process_names_and_no_escape_sequences(launch: Start):
    server = launch("--rehearse", "--num-shard", "2")
    server.stop()

    assert "\x1b" not in server.stdout + server.stderr
    assert re.search(r"^shard-1 +\| .*loaded", server.stderr, re.MULTILINE)


def test_a_terminal_shows_three_lines_the_panel_and_a_line_per_request_within_80_columns(launch: Start):
    with pseudo_terminal(80) as pty:
        server = launch("--rehearse", output=pty.stream.fileno(), TERM="xterm-256color")
        server.run("generate", "Once upon a time")
        server.stop()

    text = "\n".join(pty.lines)
    assert pty.lines[:3] == [
        "Rehearsing demo (no model is given: the demo model that comes with TGIS)",
        "  on no device: the answers are made up",
        "  up to 2,048 tokens per sequence, 1,024 of them new; 512 requests at once",
    ]
    assert "(fake, float32)" in text
    assert re.search(r"^\S+ frontend  \d+ tokens in, 20 out, .*, MAX_TOKENS$", text, re.MULTILINE)
    assert "max_batch_tokens" not in text
    assert max(map(len, text.splitlines())) <= 80


def test_with_json_output_every_line_is_an_object_and_ready_is_an_event(launch: Start):
    server = launch("--rehearse", "--json-output")
    server.stop()

    *phases, event = (json.loads(line) for line in server.stdout.splitlines())
    processes = {json.loads(line)["process"] for line in server.stderr.splitlines()}
    assert {phase["event"] for phase in phases} == {"phase"}
    assert event["event"] == "ready"
    assert event["grpc"] == server.address
    assert processes >= {"launcher", "frontend", "shard-0"}


def test_options_can_come_from_the_environment_and_a_file(launch: Start, short_path: Path):
    file = short_path / "tgis.toml"
    file.write_text("rehearse = true\nmax-sequence-length = 77\n")

    server = launch("--config", str(file), NUM_GPUS="2")

    assert (server.facts["num_shard"], server.facts["max_sequence_length"]) == (2, 77)


def test_without_a_model_the_demo_model_is_served_and_announced_as_such(launch: Start):
    server = launch()
    answer = server.run("generate", "Once upon a time", "--json")
    server.stop()

    assert server.facts["label"] == "demo model"
    assert "This is the demo model" in server.stdout
    assert json.loads(answer.stdout)["generated_token_count"] > 0


def test_a_port_in_use_is_named_with_its_owner(start: Start):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        server = start("--rehearse", "--host", "127.0.0.1", "--grpc-port", str(port))
        as_json = start("--rehearse", "--host", "127.0.0.1", "--grpc-port", str(port), "--json-output")

        assert (server.wait(), as_json.wait()) == (2, 2)
    [line] = map(json.loads, as_json.stderr.splitlines())
    assert (line["event"], line["exit_code"]) == ("failed", 2)
    assert server.last_line == f"tgis: {line['message']}"
    assert f"Port {port} is already in use by" in server.last_line
    assert "--grpc-port" in server.last_line
    assert server.run_dir is None


def test_a_server_that_shuts_down_hands_its_ports_to_the_next_one(launch: Start, start: Start):
    first = launch("--rehearse", "--host", "127.0.0.1", "--drain-delay", "2")
    ports = {"GRPC_PORT": str(first.facts["grpc_port"]), "PORT": str(first.facts["http_port"])}

    first.process.send_signal(signal.SIGTERM)
    second = start("--rehearse", "--host", "127.0.0.1", "--json-output", **ports)
    second.wait_for_line("which is stopping: waiting for it")

    assert second.wait_until_ready().address == first.address
    assert first.wait() == 0
    assert all(map(json.loads, second.stderr.splitlines()))


def test_a_run_directory_that_cannot_be_made_is_a_usage_error(start: Start):
    server = start("--rehearse", "--run-dir", "/proc/nowhere")

    assert server.wait() == 2
    assert "cannot be created in /proc/nowhere" in server.last_line
    assert "--run-dir" in server.last_line


def test_a_run_directory_too_deep_for_sockets_is_a_usage_error(start: Start, short_path: Path):
    deep = short_path / ("d" * 90)
    deep.mkdir()

    server = start("--rehearse", "--run-dir", str(deep))

    assert server.wait() == 2
    assert "too long for a Unix socket" in server.last_line


def test_a_missing_model_is_also_reported_in_the_termination_log(start: Start, short_path: Path):
    log = short_path / "termination-log"

    server = start("no/such-model", "--termination-log", str(log))

    assert server.wait() == 3
    assert "Model no/such-model not found" in server.last_line
    assert "Model no/such-model not found" in log.read_text()


def test_the_drop_in_launcher_needs_a_model(start: Start):
    server = start(script="text-generation-launcher")

    assert server.wait() == 2
    assert "No model is given" in server.last_line


def test_the_originals_manifest_starts_and_gives_a_warning_for_each_setting_that_migrate_reports(launch: Start):
    (report,) = examine_all(read_containers([read_settings_file(str(MANIFEST))]))
    environ = {given.name: given.value for given in report.container.env} | {"MODEL_NAME": str(DEMO_MODEL)}

    server = launch("--rehearse", "--host", "127.0.0.1", script="text-generation-launcher", **environ)

    pointed_out = {finding.name for finding in report.findings if finding.verdict != Treatment.SAME}
    warned = re.findall(r"warning environment (\w+)", server.stderr)
    assert sorted(warned) == sorted(pointed_out)
    assert set(server.pids) == {"launcher", "frontend", "shard-0", "shard-1"}


def test_the_originals_shard_server_starts_the_whole_server_with_one_warning(launch: Start):
    server = launch(
        str(DEMO_MODEL),
        "tgis_native",
        "--sharded",
        script="text-generation-server serve",
        TGIS_REHEARSE="true",
        TGIS_HOST="127.0.0.1",
        RANK="0",
        WORLD_SIZE="2",
        MASTER_ADDR="localhost",
        MASTER_PORT="29500",
    )

    assert server.run("generate", "Once upon a time").returncode == 0
    assert set(server.pids) == {"launcher", "frontend", "shard-0", "shard-1"}
    assert [line.split(" warning ")[1] for line in server.stderr.splitlines() if " warning " in line] == [
        "text-generation-server serve starts the whole server (all shards and the front-end): use `tgis launch`."
    ]


def test_an_error_while_loading_is_the_last_line_and_keeps_its_traceback(start: Start, short_path: Path):
    log = short_path / "termination-log"

    server = start("--rehearse", "--num-shard", "2", "--fault", "shard1:error@load", "--termination-log", str(log))

    assert server.wait() == 5
    assert server.run_dir is not None
    assert server.last_line.startswith("shard-1: RuntimeError: provoked by --fault (at tgis_server/")
    assert server.last_line.endswith(f"; the traceback is in {server.run_dir}/errors/shard-1.log.")
    assert log.read_text().startswith(server.last_line + "\nTraceback")
    assert log.read_text().endswith("RuntimeError: provoked by --fault\n")
    assert "Traceback" in (server.run_dir / "errors/shard-1.log").read_text()
    assert str(server.run_dir) in server.stderr


def test_a_crash_is_reported_with_its_place_and_stacks(start: Start):
    server = start("--rehearse", "--num-shard", "2", "--fault", "shard1:segv@step0")

    assert server.wait() == 5
    assert re.match(r"shard-1 crashed with SIGSEGV at tgis_server/options/faults.py:\d+ in strike: ", server.last_line)
    assert "most recent call first" in (server.run_dir / "errors/shard-1.log").read_text()


def test_a_front_end_that_cannot_write_reports_it(start: Start):
    server = start("--rehearse", "--fault", "frontend:disk-full@start")

    assert server.wait() == 5
    assert server.last_line.startswith(
        "frontend: there is no space left for /no/such/file (at tgis_server/options/faults.py:"
    )


def test_faults_reach_a_real_engine_if_they_are_allowed(start: Start):
    server = start("--allow-faults", "--fault", "shard0:gpu-error@step0")

    assert server.wait() == 5
    assert server.last_line.startswith("shard-0: the GPU failed: uncorrectable ECC error encountered (at tgis_server/")


def test_a_fault_of_an_unknown_kind_is_refused_with_a_list_of_kinds(start: Start):
    server = start("--rehearse", "--fault", "shard0:sneeze@load")

    assert server.wait() == 2
    assert "KIND is one of hang, exit, " in server.last_line


def test_a_process_that_ends_silently_is_named(start: Start):
    server = start("--rehearse", "--num-shard", "2", "--fault", "shard0:exit@load")

    assert server.wait() == 5
    assert server.last_line.startswith("shard-0 ended with exit code 1")


def test_a_start_without_progress_ends_with_the_stacks_of_the_silent_process(start: Start):
    server = start("--rehearse", "--num-shard", "2", "--fault", "shard0:hang@load", "--startup-timeout", "5")

    assert server.wait() == 5
    assert "shard-0 is stuck at: pretending to read weights" in server.last_line
    assert "--startup-timeout" in server.last_line
    assert re.search(r"shard-0 +\| .*in strike", server.stderr)


def test_a_shard_that_hangs_while_serving_ends_the_group(launch: Start):
    server = launch("--rehearse", "--fault", "shard0:hang@step1", "--step-timeout", "1")
    server.run("generate", "Once upon a time")

    assert server.wait() == 5
    assert "is hung" in server.last_line
    assert re.search(r"shard-0 +\| .*in strike", server.stderr)


def test_a_reader_that_stops_reading_delays_neither_service_nor_shutdown(launch: Start, full_pipe: int):
    server = launch("--rehearse", output=full_pipe)
    answer = server.run("generate", "Once upon a time")

    assert answer.returncode == 0
    assert server.stop() == 0


def test_sighup_reopens_a_rotated_log_file_and_stops_nothing(launch: Start, short_path: Path):
    log, rotated = short_path / "log", short_path / "log.1"
    server = launch("--rehearse", "--log-file", str(log))
    log.rename(rotated)

    server.process.send_signal(signal.SIGHUP)
    server.run("generate", "Once upon a time")

    assert server.stop() == 0
    assert "Ready in" in rotated.read_text()
    assert "input done" in log.read_text()


def test_a_log_file_in_a_missing_directory_is_refused(start: Start, short_path: Path):
    server = start("--rehearse", "--log-file", str(short_path / "missing" / "log"))

    assert server.wait() == 2
    assert "--log-file" in server.last_line
    assert server.run_dir is None


def test_a_reader_that_goes_away_stops_nothing(launch: Start):
    read_end, write_end = os.pipe()
    os.close(read_end)
    server = launch("--rehearse", output=write_end)
    os.close(write_end)

    assert server.stop() == 0
