"""The checks before anything starts."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from running import make_running
from tgis_cli.clients.server_status import State, Status
from tgis_cli.decide import preflight
from tgis_cli.decide.preflight import check_before_start, check_memory, check_sockets, wait_for_port
from tgis_cli.launch.prepare import Prepared, open_run_dir, prepare
from tgis_cli.machine import Cpu, Gpu, Machine
from tgis_server.engines.native.memory import MemoryRequest, RankMemory
from tgis_server.errors import NotEnoughDevices, UsageError
from tgis_server.host.ports import listen
from tgis_server.options import ServeConfig, load_config
from tgis_server.run import Run

GIB = 1 << 30


def make_run(run_dir: Path, **changes: Any) -> Run:
    run = Run(
        config=ServeConfig(grpc_port=0, port=0),
        run_dir=run_dir,
        model_id="org/name",
        model_dir=run_dir,
        engine="native",
        device="cpu",
        dtype="bfloat16",
        num_shard=2,
        max_sequence_length=2048,
        is_max_sequence_length_explicit=False,
        max_batch_tokens=512,
        tokenization_workers=1,
    )
    return replace(run, **changes)


class Weights:
    """A checkpoint of a known size."""

    def __init__(self, rank_bytes: int) -> None:
        self.rank_bytes = rank_bytes

    def weight_bytes(self, rank: int, num_shard: int, dtype: str) -> int:
        return self.rank_bytes

    def rank_memory(self, run: Run, rank: int) -> RankMemory:
        request = MemoryRequest(run.device, 1 << 10, 16, 64, False, run.config.kv_cache_memory)
        return RankMemory("m", self.rank_bytes, 0, request)


def machine(**facts: Any) -> Machine:
    return Machine(
        **{"gpus": (), "cpus": (Cpu(0, 0), Cpu(1, 1)), "has_bf16": True, "free_bytes": GIB, "limit_bytes": None} | facts
    )


def test_a_port_in_use_is_named_with_its_owner():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]

        with pytest.raises(UsageError, match=rf"Port {port} is already in use by .*\(pid {os.getpid()}\).*--port"):
            listen("127.0.0.1", port, "--port")


def test_a_server_that_shuts_down_is_given_time_to_free_its_port(monkeypatch: pytest.MonkeyPatch):
    program = (
        "import socket; s = socket.create_server(('127.0.0.1', 0)); print(s.getsockname()[1], flush=True); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, "tgis_server.child"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as predecessor:
        port = int(predecessor.stdout.readline())
        monkeypatch.setattr(time, "sleep", lambda _: predecessor.communicate("end\n"))

        wait_for_port("127.0.0.1", port, "--port")

    assert predecessor.returncode == 0


@pytest.mark.parametrize("state", [State.STARTING, State.READY])
def test_a_port_of_an_own_server_that_stays_is_not_waited_for(monkeypatch: pytest.MonkeyPatch, state: State):
    server = make_running(pid=78, grpc_port=8033)
    monkeypatch.setattr(preflight, "find_own_server", lambda port: server)
    monkeypatch.setattr(preflight, "ask", lambda server: Status(state))
    monkeypatch.setattr(time, "sleep", None)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]

        refusal = (
            rf"^Port {port} is used by your server of demo \(pid 78\): stop it with `tgis stop 8033`, or .* --port\."
        )
        with pytest.raises(UsageError, match=refusal):
            wait_for_port("127.0.0.1", port, "--port")


def test_a_port_of_an_own_server_that_stops_is_waited_for(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr(preflight, "find_own_server", lambda port: make_running(pid=78))
    monkeypatch.setattr(preflight, "ask", lambda server: Status(State.DRAINING))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setattr(time, "sleep", lambda _: taken.close())

        wait_for_port("127.0.0.1", port, "--port")

    assert caplog.messages == [
        f"Port {port} is used by your server of demo (pid 78), which is stopping: waiting for it"
    ]


def test_a_free_port_is_accepted():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]

    listen("127.0.0.1", port, "--port").close()


@pytest.mark.parametrize("host", ["no.such.host.invalid", "203.0.113.7"])
def test_a_host_that_is_not_an_address_of_this_machine_is_refused(host: str):
    with pytest.raises(UsageError, match=f"--host {host} is not an address"):
        listen(host, 0, "--port")


def test_socket_paths_of_107_bytes_fit_and_those_of_108_do_not(tmp_path: Path):
    room = 107 - len("/frontend.sock")
    fits = tmp_path / ("d" * (room - len(str(tmp_path)) - 1))
    fits.mkdir()

    check_sockets(make_run(fits))

    with pytest.raises(UsageError, match=r"1 bytes too long for a Unix socket: choose a shorter --run-dir"):
        check_sockets(make_run(Path(f"{fits}d")))


def test_the_sockets_of_a_running_server_are_not_replaced(tmp_path: Path):
    config = ServeConfig(shard_uds_path=str(tmp_path / "tgis"))
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "tgis-0"))
        server.listen()

        with pytest.raises(UsageError, match=r"tgis-0 is in use by a running server"):
            check_sockets(make_run(tmp_path, config=config))


def make_link(path: Path) -> None:
    (path.parent / "precious").touch()
    path.symlink_to("precious")


@pytest.mark.parametrize(
    ("make", "kind"),
    [(Path.touch, "a file"), (Path.mkdir, "a directory"), (make_link, "a symbolic link"), (os.mkfifo, "not a socket")],
)
def test_a_path_that_is_not_a_socket_is_not_replaced(tmp_path: Path, make: Callable[[Path], None], kind: str):
    make(tmp_path / "tgis-0")

    with pytest.raises(UsageError, match=rf"tgis-0 is {kind} and will not be replaced: .*--shard-uds-path"):
        check_sockets(make_run(tmp_path, config=ServeConfig(shard_uds_path=str(tmp_path / "tgis"))))


def test_the_socket_of_another_user_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "shard-0.sock"))
    monkeypatch.setattr(os, "getuid", lambda: 12345)

    with pytest.raises(UsageError, match=r"shard-0\.sock is a socket of user \d+ and will not be replaced"):
        check_sockets(make_run(tmp_path))


def test_a_stale_socket_file_is_accepted(tmp_path: Path):
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "shard-0.sock"))

    check_sockets(make_run(tmp_path))


def test_tls_files_must_be_readable(tmp_path: Path):
    missing = tmp_path / "cert.pem"
    config = ServeConfig(grpc_port=0, port=0, tls_cert_path=missing, tls_key_path=missing)

    with pytest.raises(UsageError, match=r"--tls-cert-path .*cert\.pem cannot be read: No such file"):
        check_before_start(make_run(tmp_path, config=config), machine(), None)


def test_weights_of_all_shards_must_fit_into_the_memory_of_one_machine(tmp_path: Path):
    run = make_run(tmp_path)

    check_memory(run, machine(), Weights(GIB // 2))  # type: ignore[arg-type]

    with pytest.raises(NotEnoughDevices, match=r"2\.0 GiB of weights .* 1\.0 GiB of memory is free"):
        check_memory(run, machine(), Weights(GIB))  # type: ignore[arg-type]


def test_weights_must_fit_on_each_gpu(tmp_path: Path):
    run = make_run(tmp_path, device="cuda")
    gpus = (Gpu("0", "GPU", 2 * GIB), Gpu("1", "GPU", GIB))

    with pytest.raises(NotEnoughDevices, match=r"1\.5 GiB per GPU on 2 GPU\(s\), but GPU 1 offers 1\.0 GiB"):
        check_memory(run, machine(gpus=gpus), Weights(3 * GIB // 2))  # type: ignore[arg-type]


def test_a_kv_cache_that_holds_no_sequence_is_refused_with_the_size_that_holds_the_longest(tmp_path: Path):
    run = make_run(tmp_path, config=ServeConfig(kv_cache_memory=1023))

    with pytest.raises(
        NotEnoughDevices, match=r" 2 tokens .*: use --kv-cache-memory 4KiB, enough for one of 64 tokens"
    ):
        check_memory(run, machine(), Weights(1))  # type: ignore[arg-type]

    smallest = replace(run, config=ServeConfig(kv_cache_memory=1024))
    check_memory(smallest, machine(), Weights(1))  # type: ignore[arg-type]


@pytest.mark.parametrize(("device", "free"), [("cpu", "512 MiB"), ("cuda", "1.0 GiB")])
def test_a_kv_cache_that_is_larger_than_the_memory_beside_the_weights_is_refused(
    device: str, free: str, tmp_path: Path
):
    run = make_run(tmp_path, device=device, config=ServeConfig(kv_cache_memory=100 << 40))
    gpus = (Gpu("0", "GPU", 2 * GIB), Gpu("1", "GPU", GIB)) if device == "cuda" else ()

    with pytest.raises(
        NotEnoughDevices, match=rf"asks for 100\.0 TiB per shard, but the weights leave only {free} free"
    ):
        check_memory(run, machine(gpus=gpus, free_bytes=3 * GIB), Weights(GIB))  # type: ignore[arg-type]


def test_a_signal_during_the_checks_leaves_no_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    loaded = load_config({"rehearse": True, "run_dir": str(tmp_path), "grpc_port": "0", "port": "0"}, {})
    seen = []

    def check(*_: object) -> None:
        seen.extend(tmp_path.glob("tgis-*/errors"))
        raise SystemExit(0)

    monkeypatch.setattr(preflight, "check_ports", check)
    with pytest.raises(SystemExit), contextlib.ExitStack() as undo:
        asyncio.run(prepare(loaded, {}, [], open_run_dir(loaded.config, undo)))

    assert len(seen) == 1
    assert not list(tmp_path.iterdir())


def start(tmp_path: Path, environ: dict[str, str], **flags: Any) -> Prepared:
    loaded = load_config({"run_dir": str(tmp_path), "grpc_port": "0", "port": "0"} | flags, environ)
    with contextlib.ExitStack() as undo:
        return asyncio.run(prepare(loaded, environ, [], open_run_dir(loaded.config, undo)))


def test_a_start_on_a_healthy_machine_gives_no_warnings_and_checks_in_less_than_a_second(tmp_path: Path):
    prepared = start(tmp_path, {})

    begun = dict(prepared.run.launcher_phases)
    assert prepared.resolved.warnings == ()
    assert begun["spawning"] - begun["checking"] < 1.0


def test_a_start_warns_of_harmless_problems(tmp_path: Path):
    resolved = start(tmp_path, {"PYTHONDEVMODE": "1", "MAX_SEQ_LENGTH": "7"}).resolved

    assert resolved.warnings == (
        "The variable MAX_SEQ_LENGTH is not an option. Did you mean MAX_SEQUENCE_LENGTH?",
        "PYTHONDEVMODE=1 enables Python's debug checks. Remove it unless you are debugging.",
    )


def test_unusable_tls_files_end_a_start_before_any_process_is_started(tmp_path: Path):
    file = tmp_path / "pem"
    file.write_text("no PEM")

    with pytest.raises(UsageError, match=r"TLS certificate .*pem and key .* cannot be used together"):
        start(tmp_path, {}, tls_cert_path=str(file), tls_key_path=str(file))

    assert list(tmp_path.iterdir()) == [file]


def test_a_start_without_preflight_checks_nothing_and_says_so(tmp_path: Path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        environ = {"SKIP_PREFLIGHT": "1", "PORT": str(taken.getsockname()[1]), "PYTHONDEVMODE": "1"}

        resolved = start(tmp_path, environ, port=None).resolved

    assert resolved.warnings == (
        "nothing was checked before startup (--skip-preflight): problems will only show up later",
    )
