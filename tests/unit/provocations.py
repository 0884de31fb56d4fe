"""A provocation for each row of the failure catalogue.

Each one gets a directory and a monkeypatch, and raises the row's error, or returns it or a ``Cause``.
"""

from __future__ import annotations

import asyncio
import errno
import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine, Iterable
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tokenizers

from doctor_subject import make_subject, with_disk
from running import make_running
from test_families_checkpoint import SPEC, shapes_of, write_safetensors
from test_preflight import Weights, make_run
from test_preflight import machine as make_machine
from tgis_cli.causes.cause import Cause, Exit, find_cause, read_records
from tgis_cli.causes.oom import OomEvidence
from tgis_cli.clients.server_status import State, Status
from tgis_cli.decide import preflight
from tgis_cli.decide.preflight import check_address_space, check_memory, check_processes, check_readable, check_sockets
from tgis_cli.decide.resolve import resolve
from tgis_cli.doctor import check_machine
from tgis_cli.doctor.verdict import Host
from tgis_cli.launch import prepare
from tgis_cli.machine import Gpu
from tgis_cli.machine.process_limits import ProcessLimit
from tgis_cli.model_files import DEMO_MODEL_DIR, find_cache_dir, find_model_dir
from tgis_cli.relay.log_file import check_log_file
from tgis_cli.runs.run_dir import RunDirLock, make_run_dir
from tgis_cli.supervisor import supervisor, watching
from tgis_cli.supervisor.progress import ProcessProgress, StallDetector
from tgis_cli.supervisor.signals import StopSignals
from tgis_server import failures
from tgis_server.child import write_error
from tgis_server.engines.api import Capacity
from tgis_server.engines.native.checkpoint.inspect import inspect_checkpoint
from tgis_server.engines.native.families import read_spec
from tgis_server.engines.native.memory import MemoryRequest, check_fits, decide_kv_budget
from tgis_server.errors import OutOfMemory, TgisError
from tgis_server.failures import Failure
from tgis_server.frontend.shard_health import GroupHealth, ShardHealth
from tgis_server.frontend.text import PieceDecoder, Tokenizer
from tgis_server.frontend.tracing import Tracing
from tgis_server.frontend.transport.tls import Tls, read_tls_file
from tgis_server.host.ports import explain_bind_error, listen
from tgis_server.options import Fault, ServeConfig, load_config
from tgis_server.shard.plan_check import PlanCheck
from tgis_server.shard.too_large import step_too_large
from tgis_server.threads import Threads
from tgis_server.wire import shard_pb2 as pb
from tgis_server.wire.endpoints import Endpoint
from tgis_server.wire.link import GrpcLink
from tgis_server.wire.messages import StepPlan, Submit, pack_ids
from tgis_server.wire.plans import PlanPublisher, PlanSubscriber

GIB = 1 << 30

Provocation = Callable[[Path, pytest.MonkeyPatch], object]
PROVOCATIONS: dict[Failure, Provocation] = {}


def provokes(failure: Failure) -> Callable[[Provocation], Provocation]:
    def register(provocation: Provocation) -> Provocation:
        PROVOCATIONS[failure] = provocation
        return provocation

    return register


# -- Options, addresses and directories -------------------------------------------------------------------------------

NOT_WRITABLE = "/proc/nowhere"  # not even by root

PROVOCATIONS |= {
    failures.WRONG_OPTION: lambda tmp, patch: load_config({"port": "tcp"}, {}),
    failures.PORT_RESERVED: lambda tmp, patch: explain_bind_error(OSError(errno.EACCES, ""), "::", 80, "--port"),
    failures.HOST_NOT_HERE: lambda tmp, patch: listen("203.0.113.7", 0, "--port"),
    failures.HOST_UNKNOWN: lambda tmp, patch: listen("no..host", 0, "--port"),  # invalid, so no resolver is asked
    failures.PORT_OF_OWN_SERVER: "is used by your server of demo (pid 78): stop it with `tgis stop ",
    failures.CANNOT_LISTEN: lambda tmp, patch: explain_bind_error(OSError(errno.EMFILE, ""), "::", 80, "--port"),
    failures.RUN_DIR_NOT_WRITABLE: lambda tmp, patch: make_run_dir(Path(NOT_WRITABLE)),
    failures.SOCKET_PATH_TOO_LONG: lambda tmp, patch: check_sockets(make_run(tmp / ("d" * 107))),
    failures.SOCKET_DIR_NOT_WRITABLE: lambda tmp, patch: check_sockets(make_run(Path(NOT_WRITABLE))),
    failures.FILE_UNREADABLE: lambda tmp, patch: check_readable("--tls-key-path", tmp / "missing"),
    failures.LOG_FILE_NOT_WRITABLE: lambda tmp, patch: check_log_file(tmp / "missing" / "log"),
    failures.TLS_FILE_UNREADABLE: lambda tmp, patch: read_tls_file(tmp / "missing"),
    failures.TLS_PAIR_UNUSABLE: lambda tmp, patch: load_tls(tmp),
    failures.CACHE_VARIABLES_DIFFER: lambda tmp, patch: find_cache_dir(
        {"HF_HUB_CACHE": "a", "TRANSFORMERS_CACHE": "b"}
    ),
    failures.SHARDS_DO_NOT_DIVIDE: lambda tmp, patch: inspect_checkpoint(tmp, SPEC, 3),
}


@provokes(failures.NO_MODEL)
def start_the_drop_in(tmp: Path, patch: pytest.MonkeyPatch) -> object:
    launcher = Path(sys.executable).parent / "text-generation-launcher"
    ended = subprocess.run([launcher], env={}, capture_output=True, text=True, check=False)
    return Cause("launcher", 0.0, ended.stderr.strip().removeprefix("tgis: "), ended.returncode)


@provokes(failures.PORT_IN_USE)
def listen_twice(tmp: Path, patch: pytest.MonkeyPatch) -> object:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return listen("127.0.0.1", taken.getsockname()[1], "--port")


@provokes(failures.PORT_OF_OWN_SERVER)
def listen_on_the_port_of_an_own_server(tmp: Path, patch: pytest.MonkeyPatch) -> object:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        patch.setattr(preflight, "find_own_server", lambda port: make_running(pid=78))
        patch.setattr(preflight, "ask", lambda server: Status(State.READY))
        return preflight.wait_for_port("127.0.0.1", port, "--grpc-port")


@provokes(failures.SOCKET_IN_USE)
def serve_on_the_socket(tmp: Path, patch: pytest.MonkeyPatch) -> object:
    run = make_run(tmp, config=ServeConfig(shard_uds_path=str(tmp / "s")))
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp / "s-0"))
        server.listen()
        return check_sockets(run)


@provokes(failures.RUN_DIR_FULL)
def have_a_full_disk(tmp: Path, patch: pytest.MonkeyPatch) -> object:
    return check_machine(make_subject(host=with_disk(4096), run_dir="/tmp"))


@provokes(failures.ADDRESSES_LIMITED)
def have_few_addresses(tmp: Path, patch: pytest.MonkeyPatch) -> object:
    patch.setattr(resource, "getrlimit", lambda kind: (200 << 20, 200 << 20))
    return check_address_space()


@provokes(failures.SOCKET_PATH_TAKEN)
def have_a_file_with_the_name_of_a_socket(tmp: Path, patch: pytest.MonkeyPatch) -> object:
    (tmp / "shard-0.sock").touch()
    return check_sockets(make_run(tmp))


def load_tls(directory: Path, **files: Path) -> object:
    paths = {f"tls_{name}_path": directory / f"{name}.pem" for name in ("cert", "key")}
    for path in paths.values():
        if not path.exists():
            path.write_text("no PEM")
    return Tls.load(ServeConfig(**paths, **files))


def make_pair(directory: Path) -> None:
    words = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout key.pem -out cert.pem -subj /CN=x"
    subprocess.run(["openssl", *words.split()], cwd=directory, check=True, capture_output=True)


@provokes(failures.TLS_CLIENT_CA_UNUSABLE)
def name_a_key_as_authority(tmp: Path, patch: pytest.MonkeyPatch) -> object:
    make_pair(tmp)
    return load_tls(tmp, tls_client_ca_cert_path=tmp / "key.pem")


@provokes(failures.TLS_OUT_OF_DATE)
def start_long_after_the_certificate_was_made(tmp: Path, patch: pytest.MonkeyPatch) -> object:
    make_pair(tmp)
    files = {f"tls_{name}_path": str(tmp / f"{name}.pem") for name in ("cert", "key")}
    return check_machine(make_subject(host=Host(now=lambda: 4e9), **files))


@provokes(failures.TLS_FILES_CHANGING)
def replace_files_all_the_time(tmp: Path, patch: pytest.MonkeyPatch) -> object:
    make_pair(tmp)
    patch.setattr(Tls, "_read", lambda self: object())
    return load_tls(tmp)


@provokes(failures.TRACING_NOT_INSTALLED)
def hide_the_tracing_libraries(tmp: Path, patch: pytest.MonkeyPatch) -> object:
    patch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    return Tracing("http://localhost:1", "name")


# -- The model --------------------------------------------------------------------------------------------------------


def model(directory: Path, config: object = None, **changes: Any) -> Path:
    """A directory with the demo model's tokenizer, and either with its config after ``changes`` or with ``config``."""
    values = json.loads((DEMO_MODEL_DIR / "config.json").read_text()) | changes
    (directory / "config.json").write_text(json.dumps(values) if config is None else str(config))
    shutil.copy(DEMO_MODEL_DIR / "tokenizer.json", directory)
    return directory


def weights(directory: Path, dtype: str = "F32", cut: int = 0, missing: str = "", **changes: Any) -> object:
    shapes = {name: shape for name, shape in (shapes_of(SPEC) | changes).items() if name != missing}
    file = directory / "model.safetensors"
    write_safetensors(file, shapes, dtype)
    file.write_bytes(file.read_bytes()[: -cut or None])
    return inspect_checkpoint(directory, SPEC, 1)


def index(directory: Path, text: str) -> object:
    (directory / "model.safetensors.index.json").write_text(text)
    return inspect_checkpoint(directory, SPEC, 1)


def serve(flags: dict[str, Any], **facts: Any) -> object:
    facts = {"torch_has_cuda": True, "free_bytes": 8 * GIB} | facts
    return resolve(load_config(flags, {}), {}, make_machine(**facts))


PROVOCATIONS |= {
    failures.MODEL_NOT_FOUND: lambda tmp, patch: find_model_dir("no/model", None, tmp),
    failures.NOT_A_DIRECTORY: lambda tmp, patch: read_spec(tmp / "missing"),
    failures.NO_CONFIG: lambda tmp, patch: read_spec(tmp),
    failures.JSON_BROKEN: lambda tmp, patch: read_spec(model(tmp, config="{")),
    failures.JSON_NO_OBJECT: lambda tmp, patch: read_spec(model(tmp, config="[]")),
    failures.CONFIG_NOT_SUPPORTED: lambda tmp, patch: read_spec(model(tmp, architectures=["GPTJForCausalLM"])),
    failures.ENGINE_NOT_PRESENT: lambda tmp, patch: serve(
        {"model_name": str(model(tmp, architectures=["X"])), "deployment_framework": "hf_transformers"}
    ),
    failures.WEIGHTS_NOT_FOUND: lambda tmp, patch: inspect_checkpoint(tmp, SPEC, 1),
    failures.WEIGHTS_INCOMPLETE: lambda tmp, patch: index(
        tmp, '{"weight_map": {"a": "b.safetensors", "c": "model.safetensors.index.json"}}'
    ),
    failures.INDEX_EMPTY: lambda tmp, patch: index(tmp, "{}"),
    failures.WEIGHTS_TRUNCATED: lambda tmp, patch: weights(tmp, cut=1),
    failures.TENSOR_MISSING: lambda tmp, patch: weights(tmp, missing="model.norm.weight"),
    failures.HEAD_MISSING: lambda tmp, patch: weights(tmp, missing="lm_head.weight"),
    failures.TENSOR_AMBIGUOUS: lambda tmp, patch: weights(tmp, **{"norm.weight": (9,)}),
    failures.TENSOR_SHAPE: lambda tmp, patch: weights(tmp, **{"model.norm.weight": (1,)}),
    failures.TENSOR_DTYPE: lambda tmp, patch: weights(tmp, dtype="I32"),
    failures.NO_TOKENIZER: lambda tmp, patch: Tokenizer.load(tmp, 1),
}


@provokes(failures.REVISION_NOT_CACHED)
def ask_for_another_revision(tmp: Path, patch: pytest.MonkeyPatch) -> object:
    (tmp / "models--a--b").mkdir()
    return find_model_dir("a/b", "x", tmp)


@provokes(failures.JSON_UNREADABLE)
def make_the_config_a_directory(tmp: Path, patch: pytest.MonkeyPatch) -> object:
    (tmp / "config.json").mkdir()
    return read_spec(tmp)


@provokes(failures.WEIGHTS_NO_HEADER)
def write_noise(tmp: Path, patch: pytest.MonkeyPatch) -> object:
    (tmp / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"xx")
    return inspect_checkpoint(tmp, SPEC, 1)


@provokes(failures.WEIGHTS_UNREADABLE)
def remove_weights_after_their_check(tmp: Path, patch: pytest.MonkeyPatch) -> object:
    import torch

    from tgis_server.engines.native.checkpoint.read import read_parameters

    shapes = shapes_of(SPEC)
    write_safetensors(tmp / "model.safetensors", shapes)
    checkpoint = inspect_checkpoint(tmp, SPEC, 1)
    (tmp / "model.safetensors").unlink()
    return list(read_parameters(checkpoint, 0, torch.float32, torch.device("cpu"), lambda *_: None))


@provokes(failures.TOKENIZER_UNREADABLE)
def break_the_tokenizer(tmp: Path, patch: pytest.MonkeyPatch) -> object:
    (tmp / "tokenizer.json").write_text("{")
    return Tokenizer.load(tmp, 1)


@provokes(failures.TOKENIZER_NOT_UNDERSTOOD)
def use_a_tokenizer_of_the_future(tmp: Path, patch: pytest.MonkeyPatch) -> object:
    (tmp / "tokenizer.json").write_text('{"version": "9.0", "model": {"type": "Unheard"}}')
    return Tokenizer.load(tmp, 1)


@provokes(failures.LFS_POINTER)
def leave_a_pointer(tmp: Path, patch: pytest.MonkeyPatch) -> object:
    (tmp / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    return inspect_checkpoint(tmp, SPEC, 1)


@provokes(failures.WEB_PAGE)
def send_a_page(tmp: Path, patch: pytest.MonkeyPatch) -> object:
    return read_spec(model(tmp, config="<!DOCTYPE html><html>"))


@provokes(failures.DECODER_NOT_SUPPORTED)
def use_a_decoder_of_whole_texts(tmp: Path, patch: pytest.MonkeyPatch) -> object:
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.decoder = tokenizers.decoders.CTC()
    return PieceDecoder(tokenizer)


# -- Devices and memory -----------------------------------------------------------------------------------------------

REQUEST = MemoryRequest(device="cpu", block_bytes=GIB, block_size=16, max_sequence_length=160, is_explicit=True)

GPU = Gpu("0", "GPU", GIB, GIB)
CUDA = {"device": "cuda", "model_name": str(DEMO_MODEL_DIR)}
PLAN = StepPlan(step=3, slots=[0], num_tokens=[7], new_blocks=[[]], sample=[True])


def check_weights(rank_bytes: int, device: str, **facts: Any) -> object:
    return check_memory(make_run(Path(), device=device), make_machine(**facts), Weights(rank_bytes))


PROVOCATIONS |= {
    failures.NO_GPU: lambda tmp, patch: serve(CUDA),
    failures.TORCH_WITHOUT_CUDA: lambda tmp, patch: serve(CUDA, gpus=(GPU,), torch_has_cuda=False),
    failures.TOO_FEW_GPUS: lambda tmp, patch: serve(CUDA | {"num_shard": 2}, gpus=(GPU,)),
    failures.WEIGHTS_EXCEED_MEMORY: lambda tmp, patch: check_weights(GIB, "cpu"),
    failures.WEIGHTS_EXCEED_GPU: lambda tmp, patch: check_weights(2 * GIB, "cuda", gpus=(GPU,)),
    failures.MODEL_TOO_LARGE: lambda tmp, patch: check_fits(REQUEST, GIB, 2 * GIB, 3 * GIB, "m"),
    failures.KV_CACHE_TOO_LARGE: lambda tmp, patch: decide_kv_budget(
        MemoryRequest("cpu", GIB, 16, 160, is_explicit=True, kv_cache_memory=10 * GIB), GIB
    ),
    failures.KV_CACHE_TOO_SMALL: lambda tmp, patch: decide_kv_budget(
        MemoryRequest("cpu", 1 << 10, 16, 160, is_explicit=False, kv_cache_memory=10), GIB
    ),
    failures.SEQUENCE_TOO_LONG: lambda tmp, patch: decide_kv_budget(REQUEST, GIB),
    failures.WARM_UP_TOO_LARGE: lambda tmp, patch: step_too_large(StepPlan(step=0), OutOfMemory()),
    failures.STEP_TOO_LARGE: lambda tmp, patch: step_too_large(PLAN, OutOfMemory()),
}


# -- A process of the group -------------------------------------------------------------------------------------------

COUNTED = OomEvidence(is_counted=True)


def end(status: int, *, name: str = "shard-1", memory: OomEvidence = COUNTED, **shared_memory: int) -> Provocation:
    """A child that ended with this status and left no error."""

    def provoke(tmp: Path, patch: pytest.MonkeyPatch) -> Cause:
        status_of_shm = SimpleNamespace(f_frsize=1, f_blocks=4 * GIB, f_bavail=4 * GIB)
        vars(status_of_shm).update(shared_memory)
        patch.setattr("os.statvfs", lambda _: status_of_shm)
        return find_cause([Exit(name, status, 1.0)], [], memory, num_shard=2)

    return provoke


def fault(kind: str) -> Provocation:
    """A child in which ``--fault`` strikes."""

    def provoke(tmp: Path, patch: pytest.MonkeyPatch) -> Cause:
        try:
            Fault.parse(f"shard1:{kind}@load").reach("load")
        except Exception as error:  # noqa: BLE001  any error, as in a child
            write_error(tmp, "shard-1", error)
        return find_cause([], read_records(tmp), COUNTED, num_shard=2)

    return provoke


def time_out_waiting(**steps: int | None) -> Provocation:
    lost = Cause("shard-0", 1.0, "shard-0 lost contact", 5, is_secondary=True)
    by_name = {name.replace("_", "-"): count for name, count in steps.items()}
    return lambda tmp, patch: find_cause([], [lost], COUNTED, num_shard=3, steps=by_name)


PROVOCATIONS |= {
    failures.GPU_OUT_OF_MEMORY: fault("gpu-oom"),
    failures.HOST_OUT_OF_MEMORY: fault("host-oom"),
    failures.DRIVER_TOO_OLD: fault("driver-too-old"),
    failures.GPU_NOT_SUPPORTED: fault("gpu-not-supported"),
    failures.GPU_UNUSABLE: fault("gpu-unusable"),
    failures.GPU_ERROR: fault("gpu-error"),
    failures.MISSING_FILE: fault("missing-file"),
    failures.FILE_FORBIDDEN: fault("file-forbidden"),
    failures.DISK_FULL: fault("disk-full"),
    failures.TOO_MANY_FILES: fault("too-many-files"),
    failures.TOO_MANY_PROCESSES: fault("too-many-processes"),
    failures.MISSING_PACKAGE: fault("missing-package"),
    failures.BROKEN_LIBRARY: fault("import-error"),
    failures.UNEXPECTED_ERROR: fault("error"),
    failures.PEER_LOST: fault("timeout"),
    failures.OUT_OF_MEMORY_KILLED: end(-signal.SIGKILL, memory=OomEvidence(True, ((0.0, 1.0),), {"shard-1": GIB}, GIB)),
    failures.OUT_OF_MEMORY_PERHAPS: end(-signal.SIGKILL, memory=OomEvidence(True, ((0.0, 1.0),), {"shard-1": 1}, GIB)),
    failures.KILLED: end(-signal.SIGKILL),
    failures.KILLED_PERHAPS_FOR_MEMORY: end(-signal.SIGKILL, memory=OomEvidence()),
    failures.SHARED_MEMORY_FULL: end(-signal.SIGBUS, f_blocks=64 << 20, f_bavail=0),
    failures.MAPPED_FILE_LOST: end(-signal.SIGBUS),
    failures.ILLEGAL_INSTRUCTION: end(-signal.SIGILL),
    failures.CRASHED: end(-signal.SIGSEGV),
    failures.ABORTED: end(-signal.SIGABRT),
    failures.ENDED_BY_SIGNAL: end(-signal.SIGTERM),
    failures.ENDED_EARLY: end(0),
    failures.ENDED_WITH_CODE: end(1),
    failures.NO_CAUSE: lambda tmp, patch: find_cause([], [], COUNTED, num_shard=1),
    failures.RANK_SILENT: time_out_waiting(shard_0=2, shard_1=None),
    failures.RANK_BEHIND: time_out_waiting(shard_0=2, shard_1=1, shard_2=2),
    failures.PROCESSES_LIMITED: lambda tmp, patch: check_processes(
        [ProcessLimit(20, 0, is_of_group=True)], Threads(1, None)
    ),
    failures.NO_PROGRESS: lambda tmp, patch: StallDetector(1.0).check([ProcessProgress("shard-0", 0.0)], 9.0),
}


@provokes(failures.STORAGE_HANGS)
def read_forever(tmp: Path, patch: pytest.MonkeyPatch) -> object:
    os.mkfifo(tmp / "config.json")
    return survey(lambda *_: (tmp / "config.json").open(), tmp, patch)


@provokes(failures.LOOK_HANGS)
def ask_a_driver_forever(tmp: Path, patch: pytest.MonkeyPatch) -> object:
    return survey(lambda *_: time.sleep(60.0), tmp, patch)


@provokes(failures.LOOK_ENDED)
def lose_the_inspecting_process(tmp: Path, patch: pytest.MonkeyPatch) -> object:
    return survey(lambda *_: os.kill(os.getpid(), signal.SIGKILL), tmp, patch)


def survey(work: Callable[..., object], tmp: Path, patch: pytest.MonkeyPatch) -> object:
    patch.setattr(prepare, "survey", work)
    loaded = load_config({"startup_timeout": "0.6"}, {})
    with RunDirLock.take(tmp) as lock:
        return asyncio.run(prepare.survey_patiently(loaded, {}, lock))


class SilentHealth:
    """Processes that never answer."""

    async def check(self, name: str, timeout_s: float) -> None:
        return None

    async def info(self, rank: int, timeout_s: float) -> None:
        return None


class StuckLoop(SilentHealth):
    """A front-end whose event loop is stuck."""

    async def check(self, name: str, timeout_s: float) -> pb.FrontendHealth:
        return pb.FrontendHealth(loop_age_s=9.0)


def watch_silence(
    patch: pytest.MonkeyPatch,
    watch: Callable[[Any], Coroutine[Any, Any, Any]],
    health: type[SilentHealth] = SilentHealth,
) -> object:
    patch.setattr(watching, "WATCH_POLL_S", 0.0)
    patch.setattr(watching, "HealthClient", lambda run: health())
    return asyncio.run(watch(watching.Watcher(make_run(Path()), SimpleNamespace(), 0.0)))


PROVOCATIONS |= {
    failures.NO_INFO: lambda tmp, patch: watch_silence(patch, lambda watcher: watcher._get_info()),
    failures.FRONTEND_HANGS: lambda tmp, patch: watch_silence(patch, lambda watcher: watcher.watch_frontend()),
    failures.EVENT_LOOP_HANGS: lambda tmp, patch: watch_silence(
        patch, lambda watcher: watcher.watch_frontend(), StuckLoop
    ),
}


class StuckChild:
    """A child that only SIGABRT ends."""

    name, pid, is_alive, stopped_at = "frontend", 1, True, 1.0

    def __init__(self) -> None:
        self.exited = asyncio.Event()

    def send_signal(self, number: int) -> None:
        if number == signal.SIGABRT:
            self.exited.set()


def supervise(tmp: Path, act: Callable[[supervisor.Supervisor], Coroutine[Any, Any, None]]) -> Cause:
    """The cause that a supervisor of a stuck child finds."""

    async def live() -> Cause:
        run = make_run(tmp, config=ServeConfig(drain_timeout=0.0))
        subject = supervisor.Supervisor(run, SimpleNamespace(), {}, StopSignals())
        await act(subject)
        return subject._hung[0]

    return asyncio.run(live())


@provokes(failures.DRAIN_HANGS)
def drain_forever(tmp: Path, patch: pytest.MonkeyPatch) -> object:
    patch.setattr(supervisor, "DRAIN_SLACK_S", 0.01)
    watcher = SimpleNamespace(report_drain=asyncio.Event().wait)
    return supervise(tmp, lambda subject: subject._drain(StuckChild(), watcher))


@provokes(failures.PROCESS_STOPPED)
def stop_a_child(tmp: Path, patch: pytest.MonkeyPatch) -> object:
    async def stop(subject: supervisor.Supervisor) -> None:
        subject._give_up_stopped(StuckChild(), 1.0)

    return supervise(tmp, stop)


# -- Consequences -----------------------------------------------------------------------------------------------------

SERVING = pb.HealthReply.SERVING


def judge(*replies: pb.HealthReply | None) -> object:
    """Why a shard with these replies counts as dead."""
    shard = ShardHealth(1, step_timeout_s=60.0)
    verdicts = [shard.observe(reply) for reply in replies]
    return failures.SHARD_SILENT.kind(verdicts[-1])


def judge_group(*replies: pb.HealthReply) -> object:
    """Why a group whose shards give these replies counts as dead."""
    watch = GroupHealth([Path(f"shard-{rank}.sock") for rank in range(len(replies))], step_timeout_s=60.0)
    return failures.SHARD_SILENT.kind(watch.judge(replies))


PROVOCATIONS |= {
    failures.SHARD_SILENT: lambda tmp, patch: judge(pb.HealthReply(state=SERVING), None, None, None),
    failures.STEP_HANGS: lambda tmp, patch: judge(pb.HealthReply(state=SERVING, step_age_s=61.0)),
    failures.GROUP_STEP_HANGS: lambda tmp, patch: judge_group(
        pb.HealthReply(state=SERVING, step_age_s=61.0), pb.HealthReply(state=SERVING, step_age_s=60.0)
    ),
    failures.STEP_LOOP_HANGS: lambda tmp, patch: judge(*[pb.HealthReply(state=SERVING, tick_age_s=4.0)] * 2),
    failures.LEADER_LATE: lambda tmp, patch: PlanSubscriber.connect(Endpoint.unix(tmp / "p"), 0.0),
    failures.ENGINE_LOST: lambda tmp, patch: read_results(GrpcLink(tmp / "none.sock")),
}


def connect(path: Path) -> tuple[PlanPublisher, PlanSubscriber]:
    publisher = PlanPublisher(Endpoint.unix(path), 1)
    subscriber = PlanSubscriber.connect(Endpoint.unix(path), 1.0)
    publisher.wait_for_followers(1.0)
    return publisher, subscriber


@provokes(failures.FOLLOWER_LATE)
def wait_without_followers(tmp: Path, patch: pytest.MonkeyPatch) -> object:
    with closing(PlanPublisher(Endpoint.unix(tmp / "p"), 1)) as publisher:
        return publisher.wait_for_followers(0.0)


@provokes(failures.LEADER_GONE)
def close_the_plans(tmp: Path, patch: pytest.MonkeyPatch) -> object:
    publisher, subscriber = connect(tmp / "p")
    publisher.close()
    with closing(subscriber):
        return subscriber.receive()


@provokes(failures.FOLLOWER_GONE)
def publish_to_a_closed_follower(tmp: Path, patch: pytest.MonkeyPatch) -> object:
    publisher, subscriber = connect(tmp / "p")
    subscriber.close()
    with closing(publisher):
        return publisher.publish(StepPlan(step=0))


@provokes(failures.COLLECTIVE_LOST)
def fail_in_a_collective(tmp: Path, patch: pytest.MonkeyPatch) -> object:
    from tgis_server.engines.native.parallel import _peer_errors

    with _peer_errors():
        raise RuntimeError("Connection closed by peer [127.0.0.1]:1234")


class Session:
    """A Session call that yields nothing and accepts no message."""

    def __init__(self, *, ends: bool) -> None:
        self._end = asyncio.get_running_loop().create_future()
        self._cancelled = False
        if ends:
            self._end.set_result(None)

    def __aiter__(self) -> Session:
        return self

    async def __anext__(self) -> None:
        await self._end
        raise StopAsyncIteration

    async def write(self, message: object) -> None:
        raise OSError("no")

    def cancel(self) -> None:
        self._end.cancel()


class ScriptedLink(GrpcLink):
    """A link whose leader is a :class:`Session`."""

    def __init__(self, *, ends: bool, requests: Iterable[Submit] = ()) -> None:
        super().__init__(Path())
        self._ends, self._requests = ends, requests

    def _stub(self) -> Any:
        return SimpleNamespace(Session=self._open)

    def _open(self) -> Session:
        asyncio.get_running_loop().call_soon(self.submit, self._requests)
        return Session(ends=self._ends)


def read_results(link: GrpcLink) -> object:
    async def read() -> object:
        try:
            return await anext(link.results())
        finally:
            await link.close()

    return asyncio.run(read())


@provokes(failures.MESSAGE_UNUSABLE)
def plan_for_an_empty_slot(tmp: Path, patch: pytest.MonkeyPatch) -> object:
    return PlanCheck(Capacity(8, 4, 32)).apply(StepPlan(3, [], [5], [1], [[]], [True]))


PROVOCATIONS |= {
    failures.ENGINE_CLOSED: lambda tmp, patch: read_results(ScriptedLink(ends=True)),
    failures.ENGINE_REFUSES: lambda tmp, patch: read_results(
        ScriptedLink(ends=False, requests=[Submit(1, pack_ids([1]), -1)])
    ),
}


# A part of the sentence, for rows whose values could be mixed up.
VALUES = {
    failures.WRONG_OPTION: "--port is 'tcp', but must be an integer",
    failures.PORT_IN_USE: f" (pid {os.getpid()}): stop it, or choose another with --port.",
    failures.CANNOT_LISTEN: "Cannot listen on port 80 (--port): Too many open files;",
    failures.FILE_UNREADABLE: "--tls-key-path /",
    failures.TLS_PAIR_UNUSABLE: "/cert.pem and key /",
    failures.TLS_OUT_OF_DATE: "The TLS certificate of x in /",
    failures.RUN_DIR_FULL: "needs 1 MiB in /tmp, but 4 KiB and 1000 inodes are free",
    failures.CACHE_VARIABLES_DIFFER: "TRANSFORMERS_CACHE and HF_HUB_CACHE",
    failures.SHARDS_DO_NOT_DIVIDE: "this model (4 attention heads, 2 KV heads, MLP of 12): use one of 1,",
    failures.REVISION_NOT_CACHED: "model a/b, revision x. Expected /",
    failures.ENGINE_NOT_PRESENT: "--deployment-framework hf_transformers,",
    failures.WEIGHTS_INCOMPLETE: "1 of 2 weight files that model.safetensors.index.json names (such as b.safetensors)",
    failures.WEIGHTS_TRUNCATED: "has 6906 bytes, but its header says 6907:",
    failures.TENSOR_MISSING: "tensor model.norm.weight, which a llama model with 2 layers",
    failures.TENSOR_SHAPE: "tensor model.norm.weight has shape [1], but config.json asks for [8]:",
    failures.TENSOR_DTYPE: "is stored as I32, but the native engine reads only F64, F32,",
    failures.TOO_FEW_GPUS: "2 shards configured but only 1 GPUs detected. Use --num-shard 1,",
    failures.WEIGHTS_EXCEED_MEMORY: "has 2.0 GiB of weights as bfloat16, but only 1.0 GiB of memory",
    failures.WEIGHTS_EXCEED_GPU: "needs 2.0 GiB per GPU on 2 GPU(s), but GPU 0 offers 1.0 GiB.",
    failures.ADDRESSES_LIMITED: "only 200 MiB of address space (`ulimit -v`), but needs 512 MiB",
    failures.MODEL_TOO_LARGE: "m needs 15.0 GiB on each shard (2.0 GiB weights, 3.0 GiB for a step, 10.0 GiB for one "
    "sequence of 160 tokens), but only 1.0 GiB",
    failures.KV_CACHE_TOO_LARGE: "asks for 10.0 GiB per shard, but the weights leave only 922 MiB free",
    failures.KV_CACHE_TOO_SMALL: "--kv-cache-memory 10 B is less than the keys and values of one sequence of 2 tokens "
    "need on each shard: use --kv-cache-memory 10KiB, enough for one of 160 tokens.",
    failures.SEQUENCE_TOO_LONG: "of 160 tokens needs 10.0 GiB for keys and values on each shard, but only 0 B is "
    "available: use more shards (--num-shard)",
    failures.MESSAGE_UNUSABLE: "The plan of step 3 cannot be applied: slots names slot 5, which is empty.",
    failures.STEP_TOO_LARGE: "Step 3 with 7 tokens of 1 sequences",
    failures.GPU_OUT_OF_MEMORY: "it asked for 2.00 GiB while 1.25 GiB of 79.15 GiB was free;",
    failures.SHARED_MEMORY_FULL: "which has 64 MiB, of which 0 B is free",
    failures.CRASHED: "shard-1 crashed with SIGSEGV at an unknown place: its last lines are in the run directory;",
    failures.FILE_FORBIDDEN: f"/no/such/file cannot be opened by user {os.getuid()} (Permission denied, at ",
    failures.MISSING_PACKAGE: "package no_such_package is not installed for /",
    failures.GPU_ERROR: "the GPU failed: uncorrectable ECC error encountered (at tgis_server/options/faults.py:",
    failures.UNEXPECTED_ERROR: "shard-1: RuntimeError: provoked by --fault (at tgis_server/options/faults.py:",
    failures.NO_PROGRESS: "shard-0 has not answered once, and there was no progress for 1 s;",
    failures.RANK_SILENT: "shard-1 does not answer, and the other shards gave up waiting for it (shard-0 lost contact)",
    failures.RANK_BEHIND: "shard-1 is hung in step 2, and the other shards gave up waiting for it (shard-0 lost "
    "contact)",
    failures.STEP_HANGS: "its current step has run for 61 s, more than --step-timeout 60.",
    failures.FOLLOWER_LATE: "1 shard(s) did not reach the first step within 0 s.",
}


def provoke(failure: Failure, tmp: Path, patch: pytest.MonkeyPatch) -> tuple[str, int]:
    """Provoke a failure; returns its sentence and exit code."""
    try:
        outcome = PROVOCATIONS[failure](tmp, patch)
    except TgisError as error:
        outcome = error
    if isinstance(outcome, Cause):
        return outcome.sentence, outcome.exit_code
    assert isinstance(outcome, TgisError), f"nothing went wrong: {outcome}"
    return str(outcome), outcome.exit_code
