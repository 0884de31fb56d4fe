"""From options to a run: models in caches, engines, devices, shards, number formats, lengths."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tgis_cli.decide.resolve import Resolved, resolve
from tgis_cli.machine import Cpu, Gpu, Machine
from tgis_cli.model_files import DEMO_MODEL_DIR, find_model, find_model_dir, suggest_demo
from tgis_server.engines.door import CpuOps
from tgis_server.errors import ModelError, NotEnoughDevices, UsageError
from tgis_server.options import load_config

GIB = 1 << 30
TWO_GPUS = tuple(Gpu(str(index), "GPU", 80 * GIB, 80 * GIB) for index in range(2))


def machine(**facts: Any) -> Machine:
    cpus = tuple(Cpu(number, number) for number in range(8))
    defaults = {"gpus": (), "cpus": cpus, "has_bf16": True, "free_bytes": 8 * GIB, "limit_bytes": None}
    return Machine(**defaults | {"torch_has_cuda": True, "cpu_kernels": ""} | facts)


def resolve_with(environ: dict[str, str] | None = None, on: Machine | None = None, **flags: Any) -> Resolved:
    environ = environ or {}
    return resolve(load_config(flags, environ), environ, on or machine())


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """A cache with one model at two revisions."""
    root = tmp_path / "hub/models--org--name"
    for commit in ("abc", "def"):
        snapshot = root / "snapshots" / commit
        snapshot.mkdir(parents=True)
        (snapshot / "config.json").write_text("{}")
    (root / "refs").mkdir()
    (root / "refs/main").write_text("abc\n")
    return tmp_path / "hub"


@pytest.fixture
def model_dir(tmp_path: Path):
    """Make a directory with the demo model's config.json, changed by keywords (``None`` removes a key)."""

    def make(**changes: Any) -> Path:
        config = json.loads((DEMO_MODEL_DIR / "config.json").read_text()) | changes
        directory = tmp_path / "model"
        directory.mkdir(exist_ok=True)
        (directory / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
        for name in ("model.safetensors", "tokenizer.json"):
            if not (directory / name).exists():
                (directory / name).symlink_to(DEMO_MODEL_DIR / name)
        return directory

    return make


# -- models


def test_a_hub_id_resolves_through_its_main_reference(cache: Path):
    assert find_model_dir("org/name", None, cache) == cache / "models--org--name/snapshots/abc"


def test_a_revision_without_a_reference_is_a_commit(cache: Path):
    assert find_model_dir("org/name", "def", cache) == cache / "models--org--name/snapshots/def"


def test_an_unknown_revision_is_an_error_that_lists_the_known_ones(cache: Path):
    text = "Config file not found in local cache for model org/name, revision v2"
    with pytest.raises(ModelError, match=rf"^{text}.*the cache has main"):
        find_model_dir("org/name", "v2", cache)


def test_a_name_that_is_not_in_the_cache_is_a_directory(cache: Path, model_dir):
    assert find_model_dir(str(model_dir()), None, cache) == model_dir()


def test_a_name_that_is_neither_is_an_error_that_says_where_it_was_looked_for(cache: Path):
    text = r"Model org/other not found: .*, nor is it in the cache"
    with pytest.raises(ModelError, match=text):
        find_model_dir("org/other", None, cache)


def test_a_path_is_not_looked_for_in_the_cache(cache: Path):
    with pytest.raises(ModelError, match=r"Model /nowhere not found: there is no directory of that name\.$"):
        find_model_dir("/nowhere", None, cache)


@pytest.mark.parametrize("name", ["", " "])
def test_an_empty_model_name_is_refused(name: str):
    with pytest.raises(UsageError, match="The model's name is empty"):
        resolve_with(model_name=name)


def test_without_a_model_the_demo_model_is_served():
    resolved = resolve_with()

    assert (resolved.run.model_id, resolved.run.model_dir, resolved.run.label) == ("demo", DEMO_MODEL_DIR, "demo model")


def test_the_demo_model_has_a_name_that_a_directory_takes_from_it(
    model_dir, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    named = resolve_with(model_name="demo")
    model_dir().rename("demo")

    assert (named.run.model_dir, named.run.label) == (DEMO_MODEL_DIR, "demo model")
    own = resolve_with(model_name="demo")
    assert (own.run.model_dir, own.run.label) == (Path("demo").resolve(), "")


@pytest.mark.parametrize(
    ("name", "hint"), [("dmeo", " Did you mean demo?"), ("demo", ""), ("org/dmeo", ""), ("llama", "")]
)
def test_only_a_name_that_is_close_to_that_of_the_demo_model_suggests_it(name: str, hint: str):
    assert suggest_demo(name) == hint


def test_an_incomplete_download_is_not_taken_for_a_misspelt_demo(cache: Path):
    (cache / "models--dem").mkdir()

    with pytest.raises(ModelError, match=r"downloads it\.$"):
        find_model("dem", None, cache)


def test_a_directory_without_a_config_is_named(tmp_path: Path, cache: Path):
    with pytest.raises(ModelError, match=rf"^{tmp_path} has no config\.json; it is not a model directory"):
        find_model_dir(str(tmp_path), None, cache)


def test_a_broken_config_is_a_model_error(model_dir):
    directory = model_dir()
    (directory / "config.json").write_text("{")

    with pytest.raises(ModelError, match=r"config\.json is not valid JSON"):
        resolve_with(model_name=str(directory))


# -- engines


def test_a_rehearsal_needs_no_weights(tmp_path: Path):
    (tmp_path / "config.json").write_text('{"model_type": "anything"}')

    run = resolve_with(model_name=str(tmp_path), rehearse=True).run

    assert (run.engine, run.label, run.device) == ("fake", "rehearsal", "cpu")


@pytest.mark.parametrize("framework", ["hf_transformers", "ds_inference"])
def test_another_framework_falls_back_to_native_with_a_warning(framework: str):
    resolved = resolve_with(deployment_framework=framework)

    assert resolved.run.engine == "native"
    assert f"deployment framework {framework} is not part of this version" in resolved.warnings[0]


def test_the_deprecated_alias_of_tgis_native_gives_a_warning():
    assert resolve_with(deployment_framework="hf_custom_tp").warnings == (
        "deployment framework hf_custom_tp is an older name of tgis_native.",
    )


def test_a_family_without_an_engine_is_a_model_error(model_dir):
    directory = model_dir(model_type="mamba", architectures=["MambaForCausalLM"])

    with pytest.raises(ModelError, match=r"MambaForCausalLM.*hf_transformers, is not part of this version"):
        resolve_with(model_name=str(directory), deployment_framework="hf_transformers")


# -- devices and shards


def test_a_visible_gpu_is_used():
    run = resolve_with(on=machine(gpus=TWO_GPUS)).run

    assert (run.device, run.num_shard, run.max_batch_tokens, run.shard_threads) == ("cuda", 1, 8192, 8)


def test_without_a_gpu_the_shards_share_the_cpus():
    run = resolve_with(num_shard="2").run

    assert (run.device, run.max_batch_tokens, run.shard_threads, run.tokenization_workers) == ("cpu", 512, 4, 6)


def test_a_gpu_that_the_installed_torch_cannot_use_is_a_warning():
    resolved = resolve_with(on=machine(gpus=TWO_GPUS, torch_has_cuda=False))

    assert resolved.run.device == "cpu"
    assert resolved.warnings == ("GPUs are visible but not used: the installed torch is built for CPUs.",)


@pytest.mark.parametrize("variable", ["CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES"])
def test_gpus_that_the_environment_lists_but_do_not_exist_are_a_warning(variable: str):
    assert resolve_with({variable: "0,1"}).warnings == (
        f"{variable} names 2 GPUs, but none can be used: the model runs on the CPU (--device cuda makes this an "
        "error).",
    )


@pytest.mark.parametrize("value", ["all", "void", "none", ""])
def test_an_environment_that_names_no_particular_gpu_gives_no_warning(value: str):
    assert resolve_with({"NVIDIA_VISIBLE_DEVICES": value}).warnings == ()


def test_cuda_without_a_gpu_is_refused():
    with pytest.raises(NotEnoughDevices, match="no GPU is visible"):
        resolve_with(device="cuda")


def test_a_gpu_problem_is_a_warning_or_part_of_the_error():
    broken = machine(gpu_problem="No GPU can be used: reboot.")

    resolved = resolve_with(on=broken)

    assert (resolved.run.device, resolved.reasons["device"]) == ("cpu", "no GPU can be used")
    assert resolved.warnings == ("No GPU can be used: reboot.",)
    assert resolve_with(on=broken, device="cpu").warnings == ()
    with pytest.raises(NotEnoughDevices, match=r"no GPU is visible\. No GPU can be used: reboot\.$"):
        resolve_with(on=broken, device="cuda")


def test_shards_on_instances_of_one_gpu_are_a_warning():
    instances = tuple(Gpu(f"MIG-{index}", board="GPU-a") for index in range(2))

    assert "MIG instances of one GPU" in resolve_with(on=machine(gpus=instances), num_shard="2").warnings[0]
    assert resolve_with(on=machine(gpus=instances), num_shard="1").warnings == ()


def test_more_shards_than_gpus_are_refused():
    with pytest.raises(NotEnoughDevices, match="4 shards configured but only 2 GPUs detected"):
        resolve_with(on=machine(gpus=TWO_GPUS), num_shard="4")


@pytest.mark.parametrize(
    ("environ", "expected", "reason"),
    [
        ({"CUDA_VISIBLE_DEVICES": "0,1"}, 2, "CUDA_VISIBLE_DEVICES lists 2 GPUs"),
        ({"CUDA_VISIBLE_DEVICES": "all"}, 2, "CUDA_VISIBLE_DEVICES lists all 2 GPUs"),
        ({"CUDA_VISIBLE_DEVICES": "1", "NVIDIA_VISIBLE_DEVICES": "0,1"}, 1, "CUDA_VISIBLE_DEVICES lists 1 GPU"),
        ({"NVIDIA_VISIBLE_DEVICES": "all"}, 2, "NVIDIA_VISIBLE_DEVICES lists all 2 GPUs"),
        ({"NVIDIA_VISIBLE_DEVICES": "void"}, 1, "NVIDIA_VISIBLE_DEVICES lists no GPUs"),
        ({"NUM_GPUS": "2"}, 2, "environment NUM_GPUS"),
        ({"NUM_SHARD": "1", "CUDA_VISIBLE_DEVICES": "0,1"}, 1, "environment NUM_SHARD"),
        ({}, 1, "neither CUDA_VISIBLE_DEVICES nor NVIDIA_VISIBLE_DEVICES is set"),
    ],
)
def test_the_number_of_shards_is_inferred_from_visible_devices(environ: dict[str, str], expected: int, reason: str):
    resolved = resolve_with(environ, machine(gpus=TWO_GPUS))

    assert (resolved.run.num_shard, resolved.reasons["num_shard"]) == (expected, reason)


@pytest.mark.parametrize("value", ["", "none", "-1", "void"])
def test_no_visible_device_means_one_shard(value: str):
    assert resolve_with({"CUDA_VISIBLE_DEVICES": value}, rehearse=True).run.num_shard == 1


def test_a_number_of_shards_that_does_not_divide_the_model_is_refused():
    with pytest.raises(UsageError, match="--num-shard 3 does not divide this model"):
        resolve_with(num_shard="3")


# -- CPUs


def test_shards_on_a_cpu_get_separate_cores():
    resolved = resolve_with(num_shard="2")

    assert (resolved.run.shard_cpus, resolved.run.shard_threads) == (((0, 1, 2, 3), (4, 5, 6, 7)), 4)
    assert resolved.reasons["shard_threads"] == "8 CPUs for 2 shards"


@pytest.mark.parametrize(
    ("flags", "facts", "num_threads", "reason"),
    [
        ({"num_shard": "1"}, {}, 8, "not pinned: a single shard has no competitor"),
        ({"cpu_pinning": "false"}, {}, 4, "flag --cpu-pinning"),
        ({}, {"cpu_quota": 4.5}, 2, "not pinned: 4 CPUs (a quota of 4.5 on 8), but it is unknown which ones"),
        ({}, {"cpus": (Cpu(3, 3),)}, 1, "not pinned: 2 shards on 1 CPU"),
    ],
)
def test_shards_are_not_pinned_if_that_could_do_harm(
    flags: dict[str, str], facts: dict[str, Any], num_threads: int, reason: str
):
    resolved = resolve_with(on=machine(**facts), **{"num_shard": "2"} | flags)

    assert (resolved.run.shard_cpus, resolved.run.shard_threads) == ((), num_threads)
    assert resolved.reasons["shard_cpus"] == reason


def test_a_shard_on_a_gpu_stays_on_the_cpus_near_it():
    gpus = (Gpu("GPU-a", cpus=frozenset({0, 1, 2, 99})), Gpu("GPU-b", cpus=frozenset({99})))

    run = resolve_with(on=machine(gpus=gpus), num_shard="2").run

    assert (run.shard_cpus, run.shard_threads) == (((0, 1, 2), (0, 1, 2, 3, 4, 5, 6, 7)), 3)


def test_gpu_shards_are_not_pinned_if_no_cpu_is_nearer_than_others():
    gpus = (Gpu("GPU-a", cpus=frozenset(range(64))), Gpu("GPU-b"))

    resolved = resolve_with(on=machine(gpus=gpus), num_shard="2")

    assert (resolved.run.shard_cpus, resolved.run.shard_threads) == ((), 4)
    assert resolved.reasons["shard_cpus"].startswith("not pinned: no CPU is known to be nearer")


@pytest.mark.parametrize(("value", "expected"), [("3", 3), ("0", 8), ("4,2", 8), (" ", 8)])
def test_a_number_of_threads_in_the_environment_is_used(value: str, expected: int):
    assert resolve_with({"OMP_NUM_THREADS": value}).run.shard_threads == expected


@pytest.mark.parametrize(
    ("value", "warning"),
    [
        ("x", "OMP_NUM_THREADS is 'x', not a number above 0: 8 is used."),
        ("0", "OMP_NUM_THREADS is '0', not a number above 0: 8 is used."),
        ("9", "OMP_NUM_THREADS=9 for 1 shard means more threads than 8 CPUs: they will wait for each other."),
    ],
)
def test_an_invalid_or_excessive_number_of_threads_is_a_warning(value: str, warning: str):
    assert resolve_with({"OMP_NUM_THREADS": value}).warnings == (warning,)


# -- rehearsals


def test_a_fault_in_a_process_that_will_not_exist_is_refused():
    with pytest.raises(
        UsageError, match="--fault shard2:exit@load would never trigger: the processes are shard-0, shard"
    ):
        resolve_with(rehearse=True, num_shard="2", fault="shard2:exit@load")


def test_a_rehearsal_of_a_run_that_would_not_start_gives_a_warning():
    (warning,) = resolve_with(rehearse=True, num_shard="3").warnings

    assert warning.startswith("Without --rehearse this would not start: --num-shard 3 does not divide this model")


# -- number formats and lengths


@pytest.mark.parametrize(
    ("flags", "facts", "expected"),
    [
        ({}, {"has_bf16": True}, "bfloat16"),
        ({}, {"has_bf16": False}, "float32"),
        ({}, {"has_bf16": False, "cpu_kernels": "avx2"}, "bfloat16"),
        ({"dtype": "fp32"}, {}, "float32"),
        ({"dtype_str": "half"}, {}, "float16"),
    ],
)
def test_the_dtype_is_the_given_one_or_the_checkpoints_if_the_cpu_computes_it_fast(
    flags: dict[str, str], facts: dict[str, Any], expected: str
):
    assert resolve_with(on=machine(**facts), **flags).run.dtype == expected


def test_what_the_compiled_operations_do_not_compute_in_becomes_float32(model_dir, monkeypatch: pytest.MonkeyPatch):
    def describe(choice: str, dtype: str, environ: object) -> CpuOps:
        return CpuOps("reference", "", "no") if dtype == "float16" else CpuOps("cached", "avx2", "compiled earlier")

    monkeypatch.setattr("tgis_server.engines.native.door.describe_cpu_ops", describe)
    resolved = resolve_with(model_name=str(model_dir(dtype="float16")), on=machine(cpu_kernels=None))

    assert (resolved.run.dtype, resolved.run.cpu_ops) == ("float32", "avx2")
    assert resolved.reasons["dtype"] == "the compiled operations do not compute in float16"
    assert resolved.reasons["cpu_ops"] == "compiled earlier"


def test_the_dtype_is_read_from_the_weights_if_the_config_has_none(model_dir):
    directory = model_dir(dtype=None)

    assert resolve_with(model_name=str(directory)).run.dtype == "bfloat16"


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"max_position_embeddings": 4096, "seq_length": 99}, 4096),
        ({"max_position_embeddings": -1, "n_positions": 1024}, 1024),
        ({"seq_len": 77}, 77),
        ({"max_position_embeddings": "long"}, 2048),
        ({}, 2048),
    ],
)
def test_the_sequence_length_is_the_first_key_that_has_a_number(tmp_path: Path, config: dict[str, Any], expected: int):
    (tmp_path / "config.json").write_text(json.dumps(config))

    run = resolve_with(model_name=str(tmp_path), rehearse=True).run

    assert (run.max_sequence_length, run.is_max_sequence_length_explicit) == (expected, False)


def test_a_sequence_length_above_the_models_own_is_a_warning():
    resolved = resolve_with(max_sequence_length="4096")

    assert (resolved.run.max_sequence_length, resolved.run.is_max_sequence_length_explicit) == (4096, True)
    assert "max_sequence_length 4096 is above the model's own 2048" in resolved.warnings[0]


def test_a_model_stretched_by_yarn_has_its_stretched_length_and_gives_no_warning_within_it(model_dir):
    scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 2048}
    directory = str(model_dir(rope_scaling=scaling))

    inferred, given = resolve_with(model_name=directory), resolve_with(model_name=directory, max_sequence_length="8192")

    assert (inferred.run.max_sequence_length, given.warnings) == (8192, ())
    assert inferred.reasons["max_sequence_length"] == (
        "2048 positions stretched by a factor of 4 (YaRN), as config.json says"
    )


def test_a_limit_on_new_tokens_that_exceeds_a_sequence_is_lowered():
    resolved = resolve_with(max_sequence_length="64", max_new_tokens="64")

    assert resolved.run.config.max_new_tokens == 63
    assert resolved.warnings == ("max_new_tokens 64 is lowered to 63: max_sequence_length is 64.",)


def test_every_choice_has_a_reason():
    lines = resolve_with(device="cpu", num_shard="2").describe()

    assert lines == [
        f"starting demo from {DEMO_MODEL_DIR} (no model is given: the demo model that comes with TGIS)",
        "  engine                native     supports this model's family",
        "  device                cpu        flag --device",
        "  num_shard             2          flag --num-shard",
        "  dtype                 bfloat16   the checkpoint's",
        "  cpu_ops               reference  stated",
        "  max_sequence_length   2048       max_position_embeddings of config.json",
        "  max_batch_tokens      512        the default on a CPU",
        "  kv_cache_memory       -          one sequence of maximum length (1 MiB) or, if larger, the smaller of "
        "4.0 GiB and 25% of what is free after loading (now 4.0 GiB per shard), but no more than --max-batch-size "
        "sequences can fill",
        "  tokenization_workers  6          8 CPUs minus 2 shards, limited to 1 to 8",
        "  shard_cpus            0-3 / 4-7  separate cores for each shard",
        "  shard_threads         4          8 CPUs for 2 shards",
    ]


def test_three_lines_tell_what_is_served_on_what_and_with_which_limits():
    assert resolve_with(device="cpu", num_shard="2").summarize() == (
        "Serving demo (no model is given: the demo model that comes with TGIS)",
        "on the CPU (flag --device), in 2 shards, as bfloat16 (the checkpoint's)",
        "up to 2,048 tokens per sequence, 1,024 of them new; 512 requests at once",
    )


def test_a_rehearsal_is_summarized_as_such():
    what, on, _ = resolve_with(rehearse=True, model_name=str(DEMO_MODEL_DIR)).summarize()

    assert what == f"Rehearsing {DEMO_MODEL_DIR}"
    assert on == "on no device: the answers are made up"


def test_on_a_gpu_the_driver_is_named_and_memory_is_divided_after_loading():
    reasons = resolve_with(on=machine(gpus=TWO_GPUS, driver="driver 570 for CUDA 12.8")).reasons

    assert reasons["device"] == "2 GPUs visible: GPU; driver 570 for CUDA 12.8"
    assert reasons["kv_cache_memory"] == "80% of what is free on each GPU after loading"


def test_lowered_and_given_values_have_reasons_too():
    inferred = resolve_with(max_sequence_length="64", kv_cache_memory="1MiB").inferred()

    assert inferred["max_new_tokens"] == {
        "value": 63,
        "reason": "one less than max_sequence_length; 1024 would not fit",
    }
    assert inferred["kv_cache_memory"] == {"value": 1 << 20, "reason": "flag --kv-cache-memory"}
