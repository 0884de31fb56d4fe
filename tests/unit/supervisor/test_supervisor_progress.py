"""Starting: what counts as progress, which process is blamed for silence, and the environment of children."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from tgis_cli.causes.cause import ProcessHangs
from tgis_cli.supervisor import watching
from tgis_cli.supervisor.environment import child_environment
from tgis_cli.supervisor.progress import ProcessProgress, StallDetector
from tgis_server.options import ServeConfig
from tgis_server.run import Run
from tgis_server.wire import shard_pb2 as pb

STARTING = pb.FrontendHealth(state=pb.FrontendHealth.STARTING, text="Loading.")


def loading(count: int, phase: str = "reading weights") -> pb.HealthReply:
    return pb.HealthReply(state=pb.HealthReply.LOADING, phase=phase, progress_count=count, step_age_s=count * 0.1)


def group() -> list[ProcessProgress]:
    return [ProcessProgress(name, 0.0) for name in ("shard-0", "shard-1", "frontend")]


def test_progress_of_any_process_keeps_the_start_alive():
    shard_0, shard_1, frontend = processes = group()
    shard_0.note(loading(1), now=1.0)
    shard_1.note(loading(1), now=1.0)
    frontend.note(STARTING, now=1.0)

    shard_1.note(loading(2), now=9.0)

    StallDetector(timeout_s=10).check(processes, now=18.0)
    with pytest.raises(ProcessHangs):
        StallDetector(timeout_s=10).check(processes, now=19.1)


def test_the_shard_that_has_been_silent_longest_is_blamed():
    shard_0, shard_1, frontend = processes = group()
    frontend.note(STARTING, now=0.5)
    shard_0.note(loading(1), now=1.0)
    shard_1.note(loading(1), now=2.0)

    with pytest.raises(ProcessHangs, match=r"shard-0 is stuck at: reading weights, and there was no progress for 10 s"):
        StallDetector(timeout_s=10).check(processes, now=12.0)


def test_a_shard_that_waits_for_the_others_is_not_blamed():
    shard_0, shard_1, frontend = processes = group()
    frontend.note(STARTING, now=0.5)
    shard_1.note(pb.HealthReply(state=pb.HealthReply.WARMING_UP), now=1.0)
    shard_0.note(loading(1), now=2.0)

    with pytest.raises(ProcessHangs, match="shard-0 is stuck at: reading weights"):
        StallDetector(timeout_s=10).check(processes, now=12.0)


def test_a_process_that_never_answered_is_reported_as_such():
    shard_0, _, frontend = processes = group()
    shard_0.note(pb.HealthReply(state=pb.HealthReply.SERVING), now=2.0)
    frontend.note(STARTING, now=1.0)

    with pytest.raises(ProcessHangs, match="shard-1 has not answered once"):
        StallDetector(timeout_s=10).check(processes, now=12.0)


def test_a_repeated_answer_is_not_progress():
    process = ProcessProgress("shard-0", 0.0)

    process.note(loading(1), now=1.0)
    process.note(loading(1), now=2.0)
    process.note(None, now=3.0)

    assert process.changed_at == 1.0


def test_a_phase_of_known_size_shows_its_share():
    process = ProcessProgress("shard-0", 0.0)
    process.note(pb.HealthReply(state=pb.HealthReply.LOADING, phase="reading weights", done=1, total=4), now=1.0)

    assert str(process) == "shard-0 reading weights 25%"


def test_a_front_end_that_stops_answering_is_reported_as_hung(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(watching, "WATCH_POLL_S", 0.001)

    async def watch() -> None:
        watcher = watching.Watcher(make_run(run_dir=tmp_path), None, 0.0)  # type: ignore[arg-type]
        await watcher.watch_frontend()

    with pytest.raises(ProcessHangs, match="frontend is hung: it has failed to answer 4 times in a row"):
        asyncio.run(watch())


# -- environment of children


def make_run(**changes: object) -> Run:
    run = Run(
        config=ServeConfig(),
        run_dir=Path("/run"),
        model_id="m",
        model_dir=Path("/m"),
        engine="native",
        device="cpu",
        dtype="float32",
        num_shard=2,
        max_sequence_length=64,
        is_max_sequence_length_explicit=False,
        max_batch_tokens=64,
        tokenization_workers=1,
        shard_threads=4,
    )
    return replace(run, **changes)  # type: ignore[arg-type]


def test_a_cpu_shard_gets_its_threads_and_nothing_else_changes():
    assert child_environment(make_run(), 1, {"HOME": "/h"}) == {
        "HOME": "/h",
        "HF_HUB_OFFLINE": "1",
        "PYTHONSAFEPATH": "1",
        "PYTHONUNBUFFERED": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "GLOO_SOCKET_IFNAME": "lo",
        "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",
        "OMP_NUM_THREADS": "4",
        "GOMP_SPINCOUNT": "1000",
        "LRU_CACHE_CAPACITY": "64",
        "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64",
        "THP_MEM_ALLOC_ENABLE": "1",
    }


@pytest.mark.parametrize(
    ("level", "environ", "verbosity"),
    [("info", {}, "ERROR"), ("info", {"GRPC_VERBOSITY": "INFO"}, "INFO"), ("debug", {}, None)],
)
def test_the_front_end_is_spared_what_grpcs_core_says_below_errors(
    level: str, environ: dict[str, str], verbosity: str | None
):
    run = make_run(config=ServeConfig(log_level=level))

    assert child_environment(run, None, environ).get("GRPC_VERBOSITY") == verbosity


def test_only_the_front_end_gets_the_collectors_credentials_and_no_child_gets_those_of_the_hub():
    run = make_run(config=ServeConfig(otlp_endpoint="http://me:word@host:4317"))
    environ = {"HF_TOKEN": "hf_1", "HUGGING_FACE_HUB_TOKEN": "hf_2", "OTLP_ENDPOINT": "http://other:word@host"}

    frontend, shard = (child_environment(run, rank, environ) for rank in (None, 0))

    assert {name: value for name, value in frontend.items() if "word" in value or "hf_" in value} == {
        "OTLP_ENDPOINT": "http://me:word@host:4317"
    }
    assert not [name for name, value in shard.items() if "word" in value or "hf_" in value]


def test_each_gpu_shard_sees_its_own_gpu():
    run = make_run(device="cuda", gpus=("3", "GPU-5"))

    environ = child_environment(run, 1, {"CUDA_VISIBLE_DEVICES": "3,GPU-5"})

    assert environ["NCCL_SOCKET_IFNAME"] == "=lo"

    assert environ["CUDA_VISIBLE_DEVICES"] == "GPU-5"
    assert environ["OMP_NUM_THREADS"] == "4"
    assert "GOMP_SPINCOUNT" not in environ


def test_the_front_end_keeps_the_launchers_view():
    environ = child_environment(make_run(device="cuda"), None, {"CUDA_VISIBLE_DEVICES": "3,4"})

    assert environ["CUDA_VISIBLE_DEVICES"] == "3,4"


@pytest.mark.parametrize(
    ("given", "expected"), [("max_split_size_mb:64", "max_split_size_mb:64"), ("", None), (" ", None)]
)
def test_the_allocators_options_can_be_set_and_removed(given: str, expected: str | None):
    environ = child_environment(make_run(), 0, {"PYTORCH_CUDA_ALLOC_CONF": given})

    assert environ.get("PYTORCH_CUDA_ALLOC_CONF") == expected
