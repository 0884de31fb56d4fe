"""Memory, CPUs and GPUs of a pod: those of the plan, and enough for what was planned."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from cluster_objects import read_quantity
from manifests import make, server_of, write_model
from tgis_cli.machine import Cpu, Machine
from tgis_cli.plan import make_report, open_model, read_devices
from tgis_cli.plan.fit import Fit
from tgis_server.errors import NotEnoughDevices
from tgis_server.options import load_config

GIB = 1 << 30
SHAPES = (
    {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 128},
    {"hidden_size": 1024, "num_attention_heads": 16, "num_key_value_heads": 16, "intermediate_size": 4096},
    {"hidden_size": 4096, "num_attention_heads": 32, "num_key_value_heads": 8, "intermediate_size": 14336},
)


def plan_in_pod(
    args: list[str], memory: int, *, has_bf16: bool = False, packs_weights: bool = True, cpu_kernels: str = ""
) -> Fit:
    """What the launcher would choose in the container: its arguments, and its limit as free memory."""
    flags: dict[str, Any] = {"model_name": args[1]}
    for name, _, value in (arg[2:].partition("=") for arg in args[2:]):
        flags[name.replace("-", "_")] = value
    loaded = load_config(flags, {})
    facts = {"packs_weights": packs_weights, "cpu_kernels": cpu_kernels}
    machine = Machine((), (Cpu(0, 0),), has_bf16, memory, memory, **facts)
    with open_model(loaded.config, {}, None) as source:
        report = make_report(source, read_devices(None, None, loaded.config, machine), loaded, {})
    assert report.problem is None
    assert report.chosen is not None
    return report.chosen


def test_without_a_stated_size_a_pod_gets_what_a_large_machine_would_give_the_model(environ: dict[str, str]) -> None:
    server = server_of(make(environ, flags={"max_sequence_length": "4096"}))

    assert "--kv-cache-memory=4GiB" in server["args"]
    assert server["resources"]["requests"] == server["resources"]["limits"] == {"cpu": "4", "memory": "36Gi"}


@settings(max_examples=40, deadline=None)
@given(
    shape=st.sampled_from(SHAPES),
    layers=st.integers(1, 6),
    length=st.sampled_from((128, 2048, 32768)),
    vocab_size=st.sampled_from((1000, 128256)),
    is_tied=st.booleans(),
    num_shard=st.sampled_from((1, 2)),
    dtype=st.sampled_from((None, "bfloat16")),
    cpu=st.one_of(st.none(), st.integers(1000, 40_000)),
    has_bf16=st.booleans(),
    packs_weights=st.booleans(),
    cpu_kernels=st.sampled_from(("", "avx512")),
)
def test_the_printed_memory_makes_the_launcher_choose_at_least_the_planned_tokens(
    shape: dict[str, int],
    layers: int,
    length: int,
    vocab_size: int,
    is_tied: bool,
    num_shard: int,
    dtype: str | None,
    cpu: int | None,
    has_bf16: bool,
    packs_weights: bool,
    cpu_kernels: str,
) -> None:
    facts = {"num_hidden_layers": layers, "max_position_embeddings": length, "vocab_size": vocab_size}
    with tempfile.TemporaryDirectory() as directory:
        model = write_model(Path(directory) / "model", **shape, **facts, tie_word_embeddings=is_tied)
        flags = {"num_shard": str(num_shard), "dtype": dtype}
        size = f"{cpu}MiB" if cpu else None
        try:
            made = make({}, str(model), flags, cpu=size, model_source="pvc:models")
        except NotEnoughDevices:
            reject()
        server = server_of(made)
        args = ["launch", str(model), *(arg for arg in server["args"][2:] if not arg.startswith("--device"))]
        limit = int(read_quantity(server["resources"]["limits"]["memory"]))

        fit = plan_in_pod(args, limit, has_bf16=has_bf16, packs_weights=packs_weights, cpu_kernels=cpu_kernels)

    [planned] = re.findall(r"KV cache \(([\d,]+) tokens\)", made.workload.resources.memory_why)
    assert fit.num_tokens >= int(planned.replace(",", ""))
    assert limit <= cpu << 20 if cpu else True


@pytest.mark.parametrize("packs", [True, False])
def test_the_cpu_of_this_machine_does_not_matter(
    packs: bool, environ: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tgis_server.engines.native.memory.cpu_packs", lambda dtype: packs)

    server = server_of(make(environ, flags={"dtype": "bfloat16", "max_sequence_length": "4096"}))

    assert server["resources"]["limits"]["memory"] == "21Gi"


def test_a_size_in_which_all_memory_is_needed_is_the_limit_and_the_launcher_divides_it(environ: dict[str, str]) -> None:
    server = server_of(make(environ, cpu="34GiB"))

    assert server["resources"]["limits"]["memory"] == "34Gi"
    assert not [arg for arg in server["args"] if arg.startswith("--kv-cache-memory")]


def test_a_given_kv_cache_is_kept(environ: dict[str, str]) -> None:
    server = server_of(make(environ, flags={"kv_cache_memory": "1GiB", "max_sequence_length": "4096"}))

    assert [arg for arg in server["args"] if "kv-cache" in arg] == ["--kv-cache-memory=1GiB"]
    assert server["resources"]["limits"]["memory"] == "33Gi"


def test_a_small_model_asks_for_little(environ: dict[str, str]) -> None:
    server = server_of(make(environ, None))

    assert server["resources"]["requests"] == {"cpu": "1", "memory": "896Mi"}
    assert "--kv-cache-memory=40MiB" in server["args"]


def test_the_reasons_tell_the_gpus_of_the_cluster_from_those_of_a_pod(environ: dict[str, str]) -> None:
    why = make(environ, gpu="4xH100").workload.resources.gpus_why

    assert re.search(r"--gpu states 4 H100 GPUs \(.*\), of which each pod uses 1$", why)


def test_gpus_are_the_fewest_that_hold_the_model(environ: dict[str, str]) -> None:
    server = server_of(make(environ, gpu="12GiB"))

    assert server["resources"]["limits"] == {"memory": "18Gi", "nvidia.com/gpu": "2"}
    assert server["resources"]["requests"] == {"cpu": "3", "memory": "18Gi", "nvidia.com/gpu": "2"}
    assert {"--num-shard=2", "--device=cuda"} <= set(server["args"])


def test_one_gpu_needs_no_shared_memory(environ: dict[str, str]) -> None:
    server = server_of(make(environ, gpu="H100"))

    assert server["resources"]["limits"] == {"memory": "14Gi", "nvidia.com/gpu": "1"}
    assert "/dev/shm" not in [mount["mountPath"] for mount in server["volumeMounts"]]


def test_cpu_cores_are_requested_and_on_a_cpu_also_limited(environ: dict[str, str]) -> None:
    on_cpu = server_of(make(environ, cpu_cores=16))["resources"]
    on_gpu = server_of(make(environ, gpu="H100", cpu_cores=16))["resources"]

    assert (on_cpu["requests"]["cpu"], on_cpu["limits"]["cpu"]) == ("16", "16")
    assert (on_gpu["requests"]["cpu"], "cpu" in on_gpu["limits"]) == ("16", False)
