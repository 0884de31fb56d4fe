"""What a model needs, on which devices it fits, and how that is reported."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from imports import run_and_list_imports
from model_configs import LLAMA_8B
from tgis_cli.decide.resolve import resolve
from tgis_cli.machine import Cpu, Gpu, Machine
from tgis_cli.model_files import DEMO_MODEL_DIR
from tgis_cli.model_files.cache import disk
from tgis_cli.model_files.download.hub import take_range
from tgis_cli.model_files.download.remote_headers import write_converted_header
from tgis_cli.plan import PlanReport, make_report, open_model, read_devices
from tgis_cli.plan.devices import read_gpu
from tgis_cli.plan.fit import CPU_PROCESS_BYTES
from tgis_cli.plan.gpu_table import CARDS, find_cards
from tgis_cli.plan.text import describe_report, format_large
from tgis_server.engines.native.memory import cpu_packs
from tgis_server.errors import ModelError, NotEnoughDevices, UsageError
from tgis_server.options import ServeConfig, load_config

GIB = 1 << 30
MACHINE = Machine(gpus=(), cpus=(Cpu(0, 0), Cpu(1, 1)), has_bf16=True, free_bytes=64 * GIB, limit_bytes=None)


@pytest.fixture
def model_dir(tmp_path: Path) -> Callable[..., Path]:
    """Make a directory with the configuration of Llama 3 8B, changed by keywords, and weights without data."""

    def make(**changes: Any) -> Path:
        directory = tmp_path / "llama"
        directory.mkdir()
        (directory / "config.json").write_text(json.dumps(LLAMA_8B | changes))
        write_converted_header(directory)
        return directory

    return make


def plan(
    directory: Path | str,
    gpu: str | None = None,
    *,
    cpu: str | None = None,
    on: Machine = MACHINE,
    environ: dict[str, str] | None = None,
    **flags: Any,
) -> PlanReport:
    environ = environ or {"HOME": "/nowhere"}
    loaded = load_config({"model_name": str(directory), **flags}, environ)
    devices = read_devices(gpu, cpu, loaded.config, on)
    with open_model(loaded.config, environ, None) as source:
        return make_report(source, devices, loaded, environ)


def text_of(report: PlanReport) -> str:
    return "\n".join(describe_report(report))


# The model


def test_parameters_and_bytes_come_from_the_headers(model_dir: Callable[..., Path]) -> None:
    facts = plan(model_dir(), "H100").as_dict()

    assert facts["num_parameters"] == 8_030_261_248
    assert facts["weights"] == {
        "num_bytes": 16_060_522_496,
        "num_files": 1,
        "bytes_by_dtype": {"bfloat16": 16_060_522_496},
    }
    assert facts["valid_num_shards"] == [1, 2, 4, 8, 16, 32]
    assert facts["chosen"]["kv_bytes_per_token"] == 128 << 10


def test_a_model_without_an_engine_is_reported_with_sizes_and_the_reason(model_dir: Callable[..., Path]) -> None:
    directory = model_dir()
    (directory / "config.json").write_text('{"model_type": "mamba", "architectures": ["MambaForCausalLM"]}')

    report = plan(directory)

    assert report.weights is not None
    assert report.verdict == "does not start"
    assert isinstance(report.problem, ModelError)
    assert "8.03 billion in bfloat16" in text_of(report)


def test_pytorch_weights_are_planned_as_if_converted(tmp_path: Path) -> None:
    directory = shutil.copytree(DEMO_MODEL_DIR, tmp_path / "model")
    tensors = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    torch.save({name: tensor.half() for name, tensor in tensors.items()}, directory / "pytorch_model.bin")
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, "torch_dtype": None, "dtype": None}))

    report = plan(directory, "H100")

    assert (report.verdict, report.source.convert_bytes > 0) == ("fits", True)
    assert report.weights is not None
    assert report.weights.bytes_by_dtype == {"float16": sum(2 * tensor.numel() for tensor in tensors.values())}
    assert str(report.source.model_dir) not in text_of(report)


def test_a_missing_tokenizer_is_a_warning(model_dir: Callable[..., Path]) -> None:
    assert "warning: No existing fast tokenizer" in text_of(plan(model_dir(), "H100"))


def test_files_that_are_already_converted_need_no_more_space(tmp_path: Path) -> None:
    directory = shutil.copytree(DEMO_MODEL_DIR, tmp_path / "model")
    tensors = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").rename(directory / "model-1.safetensors")
    torch.save(tensors, directory / "pytorch_model-1.bin")
    torch.save({"more": torch.ones(10)}, directory / "pytorch_model-2.bin")

    assert plan(directory, "H100").source.convert_bytes == 40


@pytest.mark.parametrize("name", ["training_args.bin", "pytorch_model.bin.index.json"])
def test_a_directory_without_complete_weights_is_a_model_error(name: str, tmp_path: Path) -> None:
    directory = shutil.copytree(DEMO_MODEL_DIR, tmp_path / "model")
    (directory / "model.safetensors").unlink()
    (directory / "pytorch_model.bin.index.json").write_text('{"weight_map": {"w": "pytorch_model-1.bin"}}')
    if name == "training_args.bin":
        (directory / "pytorch_model.bin.index.json").unlink()
        (directory / name).touch()

    with pytest.raises(ModelError, match="download the model"):
        plan(directory)


def test_a_directory_without_weights_is_a_model_error(model_dir: Callable[..., Path]) -> None:
    directory = model_dir()
    (directory / "model.safetensors").unlink()

    with pytest.raises(ModelError, match="download the model first"):
        plan(directory)


def test_a_damaged_file_is_reported_as_it_is_by_a_start(model_dir: Callable[..., Path]) -> None:
    directory = model_dir()
    with (directory / "model.safetensors").open("r+b") as file:
        file.truncate(1 << 20)

    assert "but its header says" in str(plan(directory).problem)


# Devices


def test_a_large_gpu_holds_the_model_with_its_longest_sequence(model_dir: Callable[..., Path]) -> None:
    report = plan(model_dir(), "H100")

    assert (report.verdict, report.chosen.num_shard, report.chosen.max_sequence_length) == ("fits", 1, 131072)
    assert [fit.num_shard for fit in report.fits] == [1, 2, 4, 8]
    assert report.chosen.num_sequences(131072) == report.chosen.num_tokens // 131072


def test_a_small_gpu_shortens_the_sequences_as_a_start_would(model_dir: Callable[..., Path]) -> None:
    report = plan(model_dir(), "L4")

    assert (report.verdict, report.chosen.num_shard) == ("fits with shorter sequences", 1)
    assert 16_000 < report.chosen.max_sequence_length < 40_000
    assert "max_sequence_length lowered from 131072" in text_of(report)


def test_the_fewest_gpus_that_hold_the_model_are_chosen(model_dir: Callable[..., Path]) -> None:
    report = plan(model_dir(), "12GiB")

    assert (report.chosen.num_shard, report.fewest_shards) == (2, 2)
    assert report.inferred["num_shard"]["reason"] == "the fewest that hold it"
    assert "--num-shard 2" in text_of(report).splitlines()[-1]


def test_too_few_shards_are_refused_with_a_number_that_fits(
    model_dir: Callable[..., Path],
) -> None:
    report = plan(model_dir(), "12GiB", num_shard="1")

    assert report.verdict == "does not fit"
    assert isinstance(report.problem, NotEnoughDevices)
    assert text_of(report).splitlines()[-1] == "It would fit with --num-shard 2."


def test_more_shards_than_usual_are_tried_until_one_number_fits(model_dir: Callable[..., Path]) -> None:
    report = plan(model_dir(), "3GiB")

    assert [fit.num_shard for fit in report.fits] == [1, 2, 4, 8, 16]
    assert (report.verdict, report.chosen.num_shard) == ("fits with shorter sequences", 16)


def test_at_most_the_stated_gpus_are_used(model_dir: Callable[..., Path]) -> None:
    report = plan(model_dir(), "6GiBx2")

    assert [fit.num_shard for fit in report.fits] == [1, 2]
    assert report.fewest_shards is None


def test_a_requested_length_must_fit(model_dir: Callable[..., Path]) -> None:
    report = plan(model_dir(), "L4", max_sequence_length="131072", num_shard="1")

    assert "16.0 GiB for one sequence of 131072 tokens), but only 21.5 GiB is free" in str(report.problem)
    assert report.fewest_shards == 2


def test_launch_options_are_respected(model_dir: Callable[..., Path]) -> None:
    report = plan(model_dir(), "H100", kv_cache_memory="2GiB", dtype="float16", max_batch_size="3")

    assert report.chosen.kv_bytes == 2 * GIB
    assert report.chosen.num_sequences(1024) == 3
    assert report.inferred["dtype"] == {"value": "float16", "reason": "flag --dtype"}


def test_the_gpu_with_the_least_free_memory_decides(model_dir: Callable[..., Path]) -> None:
    gpus = (Gpu("0", "H100", 80 * GIB, 70 * GIB), Gpu("1", "H100", 80 * GIB, 40 * GIB))
    machine = replace(MACHINE, gpus=gpus, torch_has_cuda=True)

    report = plan(model_dir(), on=machine, num_shard="2")

    assert 39 * GIB < report.chosen.free_bytes < 40 * GIB
    assert report.inferred["device"]["reason"] == "2 GPUs visible: H100"


def test_a_gpu_whose_memory_is_unknown_must_be_stated(model_dir: Callable[..., Path]) -> None:
    machine = replace(MACHINE, gpus=(Gpu("0"),), torch_has_cuda=True)

    assert "state it, for example with --gpu 80GiB" in str(plan(model_dir(), on=machine).problem)


def test_a_cpu_can_be_stated(model_dir: Callable[..., Path]) -> None:
    report = plan(model_dir(), cpu="24GiB")

    assert report.chosen.free_bytes == 24 * GIB - CPU_PROCESS_BYTES
    assert report.inferred["device"] == {"value": "cpu", "reason": "stated: a CPU with 24.0 GiB free"}


def test_cuda_visible_devices_does_not_limit_stated_gpus(model_dir: Callable[..., Path]) -> None:
    report = plan(model_dir(), "H100", environ={"HOME": "/nowhere", "CUDA_VISIBLE_DEVICES": "0,1"})

    assert report.chosen.num_shard == 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("80GiB", ("80GiB", 0)),
        ("L40S", ("L40S", 0)),
        ("L4x4", ("L4", 4)),
        ("2 x H100", ("H100", 2)),
        ("2x80GB", ("80GB", 2)),
        ("A100-40GB:2", ("A100-40GB", 2)),
        ("rtx4090 x2", ("rtx4090", 2)),
        ("rtx 500", ("rtx 500", 0)),  # not 500 of them
    ],
)
def test_a_gpu_is_a_size_or_a_name_with_an_optional_number(text: str, expected: tuple[str, int]) -> None:
    assert read_gpu(text) == expected


@pytest.mark.parametrize(
    ("name", "title"),
    [
        ("H100", "H100"),
        ("h100", "H100"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("a100-80", "A100-80"),
        ("A100 80GB", "A100-80"),
        ("NVIDIA A100-SXM4-40GB", "A100-40"),
        ("A10", "A10"),
        ("A10G", "A10G"),
        ("Tesla T4", "T4"),
        ("v100-32gb", "V100-32"),
        ("RTX A6000", "RTX A6000"),
        ("NVIDIA RTX 6000 Ada Generation", "RTX 6000 Ada"),
        ("NVIDIA RTX PRO 6000 Blackwell Server Edition", "RTX PRO 6000"),
        ("NVIDIA GeForce RTX 4090", "RTX 4090"),
        ("4090", "RTX 4090"),
        ("4070ti", "RTX 4070 Ti"),
        ("RTX 3080 10GB", "RTX 3080-10"),
        ("gb200", "GB200"),
    ],
)
def test_gpu_names_may_be_spelled_in_many_ways(name: str, title: str) -> None:
    assert [card.title for card in find_cards(name)] == [title]


@pytest.mark.parametrize("name", [card.title for card in CARDS])
def test_every_gpu_in_the_table_is_found_by_its_name_and_nothing_else(name: str) -> None:
    assert [card.title for card in find_cards(name)] == [name]


@pytest.mark.parametrize("size", ["80", "80G", "80GB", "80 gb"])
def test_a_size_without_i_is_what_the_gpu_is_sold_with(size: str) -> None:
    assert 0.97 * 80 * GIB < read_devices(size, None, ServeConfig(), MACHINE).machine.gpus[0].total_bytes < 80 * GIB


def test_a_size_in_gib_is_exact() -> None:
    assert read_devices("80GiB", None, ServeConfig(), MACHINE).machine.gpus[0].total_bytes == 80 * GIB


@pytest.mark.parametrize("name", ["MI300X", "AMD Instinct MI250", "gaudi2", "TPU v5e", "M3 Max"])
def test_a_gpu_of_another_maker_is_refused_as_such(name: str) -> None:
    with pytest.raises(UsageError, match="models run on NVIDIA GPUs and CPUs only"):
        read_devices(name, None, ServeConfig(), MACHINE)


def test_a_laptop_is_not_mistaken_for_the_larger_gpu_of_the_same_name() -> None:
    assert find_cards("RTX 4090 Laptop GPU") == []


def test_a_gpu_that_is_too_old_for_current_builds_of_torch_is_warned_of(model_dir: Callable[..., Path]) -> None:
    report = plan(model_dir(), "P100-16")

    assert report.resolved is not None
    assert [text for text in report.resolved.warnings if text.startswith("P100 has compute capability 6.0")]


def test_zero_gpus_are_refused() -> None:
    with pytest.raises(UsageError, match=r"--gpu is 'L4x0', but must state at least one GPU"):
        read_devices("L4x0", None, ServeConfig(), MACHINE)


def test_a_gpu_name_with_several_sizes_needs_the_size() -> None:
    with pytest.raises(UsageError, match=r"did you mean A100-40 or A100-80\?"):
        read_devices("A100", None, ServeConfig(), MACHINE)


@pytest.mark.parametrize("text", ["H10", "0", "6000", "", "-1GiB", "nan", "x"])
def test_an_unknown_gpu_is_refused_with_examples(text: str) -> None:
    with pytest.raises(UsageError, match=r"--gpu is .* must be a size such as 80GiB, or a name such as"):
        read_devices(text, None, ServeConfig(), MACHINE)


def test_a_misspelled_gpu_gets_a_suggestion() -> None:
    with pytest.raises(UsageError, match=r"--gpu is 'H10' \(did you mean H100\?\)"):
        read_devices("H10", None, ServeConfig(), MACHINE)


def test_contradictory_devices_are_refused() -> None:
    with pytest.raises(UsageError, match="--gpu and --cpu"):
        read_devices("H100", "3GiB", ServeConfig(), MACHINE)
    with pytest.raises(UsageError, match="--device cpu"):
        read_devices("H100", None, ServeConfig(device="cpu"), MACHINE)
    with pytest.raises(UsageError, match="--gpu H100x2 states 2"):
        read_devices("H100x2", None, ServeConfig(num_shard=4), MACHINE)


def test_every_gpu_in_the_table_has_somewhat_less_than_its_nominal_memory() -> None:
    shares = {card.title: card.usable_bytes / card.nominal_gb / GIB for card in CARDS}

    assert {title: share for title, share in shares.items() if not 0.9 < share < 1} == {}


def test_a_plan_and_a_launch_refuse_an_unserved_model_for_the_same_reason(tmp_path: Path) -> None:
    """Even if its weights are missing too."""
    (tmp_path / "config.json").write_text('{"model_type": "mamba", "architectures": ["MambaForCausalLM"]}')
    loaded = load_config({"model_name": str(tmp_path)}, {})
    with pytest.raises(ModelError) as refused:
        resolve(loaded, {"HOME": "/nowhere"}, MACHINE)

    report = plan(tmp_path)

    assert (report.verdict, str(report.problem)) == ("does not start", str(refused.value))


# Texts and limits


@pytest.mark.parametrize(
    ("number", "text"), [(8_030_261_248, "8.03 billion"), (134_515_008, "135 million"), (12345, "12,345")]
)
def test_counts_are_written_in_words(number: int, text: str) -> None:
    assert format_large(number) == text


@pytest.mark.parametrize(
    ("flags", "dtype", "expected"),
    [
        ("avx2 fma", "bfloat16", False),
        ("avx512bw avx512vl avx512dq", "bfloat16", True),
        ("avx512bw avx512vl avx512dq", "float16", False),
        ("avx2", "float32", True),
    ],
)
def test_a_cpu_packs_dtypes_that_its_instructions_support(
    flags: str, dtype: str, expected: bool, tmp_path: Path
) -> None:
    (tmp_path / "cpuinfo").write_text(f"flags\t: {flags}\n")

    assert cpu_packs(dtype, tmp_path / "cpuinfo") is expected


def test_a_range_of_a_stream_is_taken_however_the_stream_is_divided() -> None:
    assert take_range(iter([b"ab", b"cde", b"fgh"]), 1, 4) == b"bcde"
    with pytest.raises(ConnectionError):
        take_range(iter([b"ab"]), 1, 4)


def test_a_download_larger_than_the_disk_does_not_fit(
    model_dir: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk, "free_disk_bytes", lambda directory: GIB)
    directory, environ = model_dir(), {"HOME": "/nowhere"}
    loaded = load_config({"model_name": str(directory)}, environ)
    devices = read_devices(None, None, loaded.config, MACHINE)
    with open_model(loaded.config, environ, None) as source:
        remote = replace(source, missing_bytes=16 * GIB, target_dir=directory)
        report = make_report(remote, devices, loaded, environ)

    assert report.verdict == "does not fit"
    assert "needs 16.0 GiB in" in str(report.problem)
    assert "sequences of up to" not in text_of(report)


@pytest.mark.serial
def test_a_local_plan_is_fast_and_does_not_import_torch(model_dir: Callable[..., Path]) -> None:
    started_s = time.monotonic()

    exit_code, imported = run_and_list_imports("plan", str(model_dir()), "--gpu", "H100", entry="app")

    assert not exit_code
    assert imported.isdisjoint({"torch", "huggingface_hub"})
    assert time.monotonic() - started_s < 5  # allows for a busy machine; an idle one needs 0.35


# At a terminal's width


def lines_at(report: PlanReport, width: int | None) -> list[str]:
    return list(describe_report(report, width))


@pytest.mark.parametrize("width", [60, 80, 120])
def test_no_line_of_a_plan_is_wider_than_the_terminal_and_no_word_is_cut(
    model_dir: Callable[..., Path], width: int
) -> None:
    report = plan(model_dir(), "L4x4")
    words = {word for line in lines_at(report, None) for word in line.split() if len(word) < width // 2}

    lines = lines_at(report, width)

    assert max(map(len, lines)) <= width
    assert words <= {word for line in lines for word in line.split()}


def test_numbers_of_shards_stand_side_by_side_as_far_as_there_is_room(model_dir: Callable[..., Path]) -> None:
    report = plan(model_dir(), "H100x8")

    assert heads(lines_at(report, 80)) == ["1 (chosen) 2 4 8"]
    assert heads(lines_at(report, 60)) == ["1 (chosen) 2 4", "8"]


def test_of_a_single_number_of_shards_none_is_marked(model_dir: Callable[..., Path]) -> None:
    assert heads(lines_at(plan(model_dir(), "H100x1"), 80)) == ["1"]


def heads(lines: list[str]) -> list[str]:
    """The numbers of shards of each table."""
    heads = [line.split()[1:] for line in lines if line.startswith("  shards ")]
    return [" ".join(numbers) for numbers in heads if "1," not in numbers]


def test_a_number_of_shards_that_does_not_fit_says_so_in_its_column(model_dir: Callable[..., Path]) -> None:
    (line,) = (line for line in lines_at(plan(model_dir(), "L4x4", dtype="float32"), None) if "KV cache " in line)

    assert "does not fit" in line


def test_a_kv_cache_that_is_too_small_does_not_fit_and_what_the_longest_sequence_needs_is_named(
    model_dir: Callable[..., Path],
) -> None:
    report = plan(model_dir(), "H100", kv_cache_memory="10")

    assert report.verdict == "does not fit"
    assert str(report.problem).endswith(": use --kv-cache-memory 16GiB, enough for one of 131,072 tokens.")
    assert plan(report.source.model_dir, "H100", kv_cache_memory="2MiB").verdict == ("fits with shorter sequences")
