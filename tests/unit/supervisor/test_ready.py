"""The announcement of a server that is ready, as a person sees it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from terminals import pseudo_terminal
from test_supervisor_progress import make_run
from tgis_cli.relay.terminal import Terminal
from tgis_cli.supervisor.ready import Ready, make_lines, make_panel
from tgis_cli.supervisor.timeline import PhaseTime, Timeline
from tgis_server.options import ServeConfig
from tgis_server.wire import shard_pb2 as pb

INFO = pb.InfoReply(
    model_type="llama", dtype="bfloat16", device="cpu", num_blocks=100, block_size=16, max_sequence_length=2048
)
TIMELINE = Timeline(0.0, 2.2, [PhaseTime("shard-0", "starting", 2.2)], ["shard-0"])


def make_ready(info: pb.InfoReply = INFO, **options: Any) -> Ready:
    run = replace(make_run(config=ServeConfig(**options)), model_id="granite-3b", num_shard=1)
    return Ready(run, info, grpc_port=41234, http_port=3000, pids={}, timeline=TIMELINE)


def row(ready: Ready, name: str) -> str:
    return dict(ready.rows())[name]


@pytest.mark.parametrize(
    ("options", "grpc", "http"),
    [
        (
            {},
            "0.0.0.0:41234 (all interfaces)",
            "0.0.0.0:3000 (all interfaces): http://127.0.0.1:3000/health and /metrics",
        ),
        (
            {"host": "::"},
            "[::]:41234 (all interfaces)",
            "[::]:3000 (all interfaces): http://[::1]:3000/health and /metrics",
        ),
        ({"host": "127.0.0.1"}, "127.0.0.1:41234", "http://127.0.0.1:3000/health and /metrics"),
        ({"host": "::1"}, "[::1]:41234", "http://[::1]:3000/health and /metrics"),
        (
            {"tls_cert_path": Path("c.pem")},
            "0.0.0.0:41234 (all interfaces, TLS)",
            "0.0.0.0:3000 (all interfaces): http://127.0.0.1:3000/health and /metrics",
        ),
        (
            {"tls_cert_path": Path("c.pem"), "tls_client_ca_cert_path": Path("ca.pem"), "http_tls": "server"},
            "0.0.0.0:41234 (all interfaces, TLS with client certificates)",
            "0.0.0.0:3000 (all interfaces, TLS): https://127.0.0.1:3000/health and /metrics",
        ),
    ],
)
def test_the_addresses_are_those_that_the_server_listens_on(options: dict[str, Any], grpc: str, http: str):
    ready = make_ready(**options)

    assert (row(ready, "gRPC"), row(ready, "HTTP")) == (grpc, http)


def test_a_panel_of_80_columns_has_what_a_person_needs_and_no_word_is_cut():
    with pseudo_terminal(80) as pty:
        terminal = Terminal(pty.stream, pty.stream, {"TERM": "xterm"}, as_json=False, names=["launcher"])
        ready = make_ready(replace_notes("max_sequence_length lowered from 131072 to 2048: " + "some reason " * 6))
        terminal.print("\n".join(make_lines(ready)), make_panel(ready, 80, is_verbose=False))
        assert terminal.close(timeout_s=5)

    lines = pty.lines
    assert [line[2:10].strip() for line in lines[1:6]] == ["model", "runs as", "capacity", "gRPC", "HTTP"]
    assert lines[0].startswith("╭─ ready in 2.2 s ─")
    assert max(map(len, lines)) <= 80
    assert {line[-1] for line in lines[1:-1]} == {"│"}
    assert not any("start" in line for line in lines)


def test_compiled_operations_stand_beside_the_device():
    ready = make_ready(pb.InfoReply(device="cpu", kernels="avx512"))

    assert row(ready, "runs as") == "1 shard on cpu (avx512)"
    assert ready.facts()["kernels"] == "avx512"
    assert row(make_ready(), "runs as") == "1 shard on cpu"


def replace_notes(*notes: str) -> pb.InfoReply:
    info = pb.InfoReply()
    info.CopyFrom(INFO)
    info.notes.extend(notes)
    return info


def test_verbose_and_files_say_where_the_seconds_went():
    assert "  start     shard-0 2.2 s (starting 2.2)" in make_lines(make_ready())


def test_a_dumb_terminal_gets_lines_without_a_frame():
    lines = make_lines(make_ready(), 70, is_verbose=False)

    assert lines[0] == "Ready in 2.2 s."
    assert max(map(len, lines)) <= 70
    assert all(line.isascii() for line in lines)


def test_a_first_request_that_does_not_fit_stays_on_a_line_of_its_own_below_the_panel():
    ready = make_ready(tls_cert_path=Path("/etc/" + "certificates/" * 5 + "server.pem"))
    with pseudo_terminal(80) as pty:
        terminal = Terminal(pty.stream, pty.stream, {"TERM": "xterm"}, as_json=False, names=["launcher"])
        terminal.print("", make_panel(ready, 80, is_verbose=False))
        assert terminal.close(timeout_s=5)

    assert pty.lines[-2:] == ["try:", ready.first_request]
    assert pty.lines[-3].startswith("╰")


def test_on_a_dumb_terminal_a_long_first_request_stays_whole_too():
    ready = make_ready(tls_cert_path=Path("/etc/" + "certificates/" * 5 + "server.pem"))

    assert f"  try       {ready.first_request}" in make_lines(ready, 80, is_verbose=False)
