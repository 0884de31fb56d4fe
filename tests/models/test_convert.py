"""PyTorch weights become safetensors with the same tensors, without running code from the files."""

from __future__ import annotations

import errno
import json
import os
import pickle
import random
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from file_limit import with_file_limit
from tgis_cli.model_files.convert import to_safetensors
from tgis_cli.model_files.convert.safetensors_file import Content, write_content
from tgis_cli.model_files.convert.to_safetensors import convert_to_safetensors
from tgis_cli.model_files.convert.torch_file import read_torch_file
from tgis_server.errors import ModelError, TgisError, UsageError
from tgis_server.model_files import TENSOR_DTYPES
from tiny import Oracle, load, make_checkpoint, prompt_of

TGIS = Path(sys.executable).parent / "tgis"
NUM_KILLS = [2, pytest.param(int(os.environ.get("TGIS_KILL_RUNS", "40")), marks=pytest.mark.acceptance)]


def convert(directory: Path) -> list[str]:
    return convert_to_safetensors(directory, as_json=False)


def save(directory: Path, tensors: Any, name: str = "pytorch_model.bin", **options: Any) -> Path:
    torch.save(tensors, directory / name, **options)
    return directory / name


def read_metadata(file: Path) -> dict[str, str]:
    with safe_open(file, "pt") as opened:
        return opened.metadata()


def names_in(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


# -- The same tensors -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "before torch 1.6"])
def test_every_dtype_and_shape_is_converted_as_torch_reads_it(is_zip: bool, tmp_path: Path):
    tensors = {
        name: torch.randint(0, 2, shape).to(getattr(torch, name))
        for name, shape in zip(TENSOR_DTYPES, [(), (0,), (3,), (2, 3), (1, 2, 3, 4)] * 4, strict=False)
        if is_zip or hasattr(torch, {"uint16": "x", "uint32": "x", "uint64": "x"}.get(name, name))
    }
    if not is_zip:
        tensors = {name: tensor for name, tensor in tensors.items() if "float8" not in name}
    source = save(tmp_path, tensors, _use_new_zipfile_serialization=is_zip)

    convert(tmp_path)

    found, expected = load_file(tmp_path / "model.safetensors"), torch.load(source, weights_only=True)
    assert found.keys() == expected.keys()
    assert all(found[name].dtype == expected[name].dtype for name in expected)
    assert all(torch.equal(found[name].view(-1), expected[name].view(-1)) for name in expected if "8_" not in name)


def test_views_are_converted_with_the_values_that_they_show(tmp_path: Path):
    base = torch.arange(24.0).reshape(4, 6)
    views = {
        "q": base[:2],
        "k": base[2:],
        "t": torch.randn(3, 5).T,
        "s": torch.arange(10)[::3],
        "p": torch.randn(2, 3, 4).permute(2, 0, 1),
    }
    save(tmp_path, views)

    convert(tmp_path)

    found = load_file(tmp_path / "model.safetensors")
    assert {name: tensor.tolist() for name, tensor in found.items()} == {
        name: tensor.tolist() for name, tensor in views.items()
    }


def test_parameters_and_buffers_of_a_module_are_converted(tmp_path: Path):
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    save(tmp_path, dict(module.named_parameters()) | dict(module.named_buffers()))

    convert(tmp_path)

    found = load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(found[name], tensor) for name, tensor in module.state_dict().items())


def test_attributes_of_tensors_and_plain_values_are_ignored(tmp_path: Path):
    weight, buffer = torch.nn.Parameter(torch.ones(2)), torch.zeros(3)
    weight.is_parallel = buffer.is_parallel = True
    save(tmp_path, {"w": weight, "b": buffer, "device": torch.device("cpu"), "raw": b"\xff", "set": {1}, "z": 1j})

    convert(tmp_path)

    assert_same(load_file(tmp_path / "model.safetensors"), {"w": torch.ones(2), "b": torch.zeros(3)})


def test_a_large_non_contiguous_tensor_is_written_in_parts(tmp_path: Path):
    tensor = torch.arange(6_000_000).reshape(2000, 3000).t()
    save(tmp_path, {"w": tensor})

    convert(tmp_path)

    assert_same(load_file(tmp_path / "model.safetensors"), {"w": tensor})


def test_a_wrapped_state_dict_is_unwrapped_and_other_entries_are_reported(tmp_path: Path, capsys):
    save(tmp_path, {"epoch": 3, "state_dict": {"w": torch.ones(2), "step": 7}})

    convert(tmp_path)

    assert load_file(tmp_path / "model.safetensors").keys() == {"w"}
    assert "pytorch_model.bin: step is not a tensor and is left out" in capsys.readouterr().err


@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.parametrize("has_transformers", [True, False])
def test_converted_models_generate_the_same_tokens(
    tie: bool, has_transformers: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    directory = make_checkpoint(tmp_path / "model", "llama", tie_word_embeddings=tie)
    oracle = Oracle(directory)
    expected = oracle.generate(prompt_of(9, seed=1), 12)
    torch.save(oracle.model.state_dict(), directory / "pytorch_model.bin")
    (directory / "model.safetensors").unlink()
    if not has_transformers:
        monkeypatch.setitem(sys.modules, "transformers", None)

    convert(directory)

    removed = {name: kept for name, kept in read_metadata(directory / "model.safetensors").items() if name != "format"}
    assert removed == ({"lm_head.weight": "model.embed_tokens.weight"} if tie else {})
    monkeypatch.undo()
    (directory / "pytorch_model.bin").unlink()
    assert Oracle(directory).generate(prompt_of(9, seed=1), 12) == expected
    load(directory, tmp_path).close()


@pytest.mark.parametrize("prefix", ["model.", ""])
def test_a_tensor_that_the_engine_reads_by_two_names_is_copied(prefix: str, tmp_path: Path):
    directory = make_checkpoint(tmp_path / "model", "llama", tie_word_embeddings=False)
    tensors = load_file(directory / "model.safetensors")
    state = {name.replace("model.", prefix, 1): tensor for name, tensor in tensors.items()}
    torch.save(state | {"lm_head.weight": state[f"{prefix}embed_tokens.weight"]}, directory / "pytorch_model.bin")
    (directory / "model.safetensors").unlink()

    convert(directory)

    assert load_file(directory / "model.safetensors").keys() == state.keys()
    load(directory, tmp_path).close()


def test_in_an_unknown_model_a_tensor_keeps_its_first_name(tmp_path: Path):
    tensor = torch.ones(4, 4)
    save(tmp_path, {"b": tensor, "a": tensor, "c": tensor})

    convert(tmp_path)

    assert load_file(tmp_path / "model.safetensors").keys() == {"a"}
    assert read_metadata(tmp_path / "model.safetensors") == {"format": "pt", "b": "a", "c": "a"}


def test_a_part_of_a_tensor_becomes_a_separate_tensor(tmp_path: Path):
    base = torch.arange(12.0).reshape(3, 4)
    save(tmp_path, {"base": base, "row": base[1]})

    convert(tmp_path)

    found = load_file(tmp_path / "model.safetensors")
    assert found["row"].tolist() == [4, 5, 6, 7]


def test_overlapping_tensors_are_refused_unless_one_covers_the_others(tmp_path: Path):
    base = torch.arange(12.0)
    save(tmp_path, {"a": base[:8], "b": base[4:]})

    with pytest.raises(ModelError, match=r"a, b in .* share memory, and none of them covers the others"):
        convert(tmp_path)
    assert names_in(tmp_path) == ["pytorch_model.bin"]


@pytest.mark.parametrize(("place", "told"), [(20, r"\(the header\)"), (-20, "b"), (None, r"\(the size of the file\)")])
def test_a_file_that_differs_from_its_source_is_not_kept(
    place: int | None, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    save(tmp_path, {"a": torch.ones(9), "b": torch.ones(9).t()})

    def write(path: Path, content: Content, advance: Any, on_written: Callable[[str], None]) -> None:
        write_content(path, content, advance, lambda name: None)
        with path.open("r+b") as file:
            file.seek(*((place, 0) if place and place > 0 else (place or 0, os.SEEK_END)))
            file.write(b"?")
        for name in content.in_order():
            on_written(name)

    monkeypatch.setattr(to_safetensors, "write_content", write)

    with pytest.raises(ModelError, match=f"The output tensors do not match for key {told}: check the disk"):
        convert(tmp_path)
    assert names_in(tmp_path) == ["pytorch_model.bin"]


# -- Several files ----------------------------------------------------------------------------------------------------


def save_sharded(directory: Path, num_files: int = 3, num_bytes: int = 64) -> dict[str, torch.Tensor]:
    weight_map, everything = {}, {}
    for number in range(1, num_files + 1):
        name = f"pytorch_model-{number:05}-of-{num_files:05}.bin"
        tensors = {f"layer.{number}.weight": torch.randn(num_bytes // 4), f"layer.{number}.bias": torch.randn(3)}
        save(directory, tensors, name)
        weight_map |= dict.fromkeys(tensors, name)
        everything |= tensors
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (directory / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    (directory / "config.json").write_text("{}")
    return everything


def read_all(directory: Path) -> dict[str, torch.Tensor]:
    index = json.loads((directory / "model.safetensors.index.json").read_text())
    found = {}
    for name, file in index["weight_map"].items():
        found[name] = load_file(directory / file)[name]
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in found.values())
    return found


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_shards_keep_their_numbers_and_get_an_index(tmp_path: Path):
    expected = save_sharded(tmp_path)

    converted = convert(tmp_path)

    assert converted == [f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)]
    assert_same(read_all(tmp_path), expected)


def test_shards_without_an_index_get_one(tmp_path: Path):
    expected = save_sharded(tmp_path)
    (tmp_path / "pytorch_model.bin.index.json").unlink()

    convert(tmp_path)

    assert_same(read_all(tmp_path), expected)


def test_a_second_run_converts_only_what_is_missing(tmp_path: Path):
    expected = save_sharded(tmp_path)
    convert(tmp_path)
    (tmp_path / "model-00002-of-00003.safetensors").unlink()
    (tmp_path / "model.safetensors.index.json").unlink()
    (tmp_path / ".model-00002-of-00003.safetensors.incomplete").write_bytes(b"half")

    converted = convert(tmp_path)

    assert converted == ["model-00002-of-00003.safetensors"]
    assert_same(read_all(tmp_path), expected)
    assert not [name for name in names_in(tmp_path) if "incomplete" in name]


def test_a_third_run_does_nothing(tmp_path: Path, capsys):
    save_sharded(tmp_path)
    convert(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}

    assert convert(tmp_path) == []
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before
    assert "already converted" in capsys.readouterr().err


def test_a_truncated_target_is_converted_again(tmp_path: Path):
    save(tmp_path, {"w": torch.ones(1000)})
    (tmp_path / "model.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{}")

    convert(tmp_path)

    assert load_file(tmp_path / "model.safetensors")["w"].sum() == 1000


def test_files_of_a_training_run_are_left_alone(tmp_path: Path):
    save(tmp_path, {"w": torch.ones(2)})
    for name in ("training_args.bin", "optimizer.pt", "scheduler.pt"):
        (tmp_path / name).write_bytes(b"code")

    assert convert(tmp_path) == ["model.safetensors"]


def test_other_weights_next_to_the_standard_file_are_left_alone(tmp_path: Path):
    save(tmp_path, {"w": torch.ones(2)})
    save(tmp_path, {"old": torch.ones(2)}, "model.bin")
    (tmp_path / "ggml-model-f16.bin").write_bytes(b"of another program")

    assert convert(tmp_path) == ["model.safetensors"]
    assert load_file(tmp_path / "model.safetensors").keys() == {"w"}


def test_a_pt_file_keeps_its_name(tmp_path: Path):
    save(tmp_path, {"w": torch.ones(2)}, "decoder.pt")

    assert convert(tmp_path) == ["decoder.safetensors"]


def test_having_nothing_to_convert_is_not_an_error(tmp_path: Path, capsys):
    assert convert(tmp_path) == []
    assert "there is nothing to convert" in capsys.readouterr().err


def lose_a_shard(directory: Path) -> None:
    save_sharded(directory)
    (directory / "pytorch_model-00002-of-00003.bin").unlink()


def link_to_nothing(directory: Path) -> None:
    (directory / "pytorch_model.bin").symlink_to(directory / "gone")


def name_a_file_elsewhere(directory: Path) -> None:
    (directory / "other").mkdir()
    save(directory / "other", {"w": torch.ones(2)})
    (directory / "pytorch_model.bin.index.json").write_text('{"weight_map": {"w": "other/pytorch_model.bin"}}')


def spoil_the_last(directory: Path) -> None:
    save_sharded(directory)
    (directory / "pytorch_model-00003-of-00003.bin").write_bytes(b"<html>")


def add_an_index(directory: Path) -> None:
    save_sharded(directory)
    shutil.copy(directory / "pytorch_model.bin.index.json", directory / "other.bin.index.json")


def double_a_name(directory: Path) -> None:
    save(directory, {"w": torch.ones(2)}, "pytorch_model-1.bin")
    save(directory, {"w": torch.ones(2)}, "pytorch_model-2.bin")


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lose_a_shard, r"names pytorch_model-00002-of-00003\.bin, which does not exist \(1 of 3 files are missing\)"),
        (link_to_nothing, "is a dangling link"),
        (name_a_file_elsewhere, r"names other/pytorch_model\.bin, which does not exist"),
        (spoil_the_last, r"00003-of-00003\.bin is a web page"),
        (add_an_index, "has several indexes"),
        (double_a_name, r"w is in model-1\.safetensors and in model-2\.safetensors"),
    ],
)
def test_incomplete_or_inconsistent_files_are_refused_before_anything_is_written(
    spoil: Callable[[Path], None], sentence: str, tmp_path: Path
):
    spoil(tmp_path)
    before = names_in(tmp_path)

    with pytest.raises(ModelError, match=sentence):
        convert(tmp_path)
    assert names_in(tmp_path) == before


@pytest.mark.parametrize(
    "text", ["", '{"weight_map": {"w": "model-00001-of-00009.safetensors"}}'], ids=["cut", "other"]
)
def test_a_useless_index_is_replaced(text: str, tmp_path: Path):
    expected = save_sharded(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text(text)

    convert(tmp_path)

    assert_same(read_all(tmp_path), expected)


# -- Code and damage --------------------------------------------------------------------------------------------------


class Evil:
    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)


@pytest.mark.parametrize("is_zip", [True, False])
def test_a_pickle_with_code_is_refused_and_its_code_is_not_run(is_zip: bool, tmp_path: Path):
    evil = Evil(f"touch {tmp_path / 'harm'}")
    save(tmp_path, {"w": torch.ones(2), "x": evil}, _use_new_zipfile_serialization=is_zip)

    with pytest.raises(ModelError, match=r"reading it would run posix\.system"):
        convert(tmp_path)
    assert names_in(tmp_path) == ["pytorch_model.bin"]


@pytest.mark.parametrize(
    ("value", "what"),
    [
        (torch.nn.Linear(2, 2), "collections.OrderedDict|torch.nn.modules"),
        ({"w": torch.ones(2).to_sparse()}, "contains sparse tensors, which safetensors cannot store"),
        ({"w": torch.ones(2, dtype=torch.complex64).conj()}, "contains conj views of other tensors, which"),
        ({"w": torch.ones(2, dtype=torch.complex128)}, "contains tensors of type complex128, which"),
        ([torch.ones(2)], "contains a list, not named tensors"),
        (torch.ones(2), "contains a tensor, not named tensors"),
        ({"step": 3}, "contains no tensors"),
    ],
    ids=["module", "sparse", "conjugate", "complex128", "list", "tensor", "numbers"],
)
@pytest.mark.filterwarnings("ignore")
def test_files_without_convertible_tensors_are_refused_with_the_reason(value: Any, what: str, tmp_path: Path):
    save(tmp_path, value)

    with pytest.raises(ModelError, match=what):
        convert(tmp_path)
    assert names_in(tmp_path) == ["pytorch_model.bin"]


@pytest.mark.parametrize("is_zip", [True, False])
def test_a_file_truncated_anywhere_is_refused(is_zip: bool, tmp_path: Path):
    source = save(tmp_path, {"w": torch.ones(500), "v": torch.ones(500)}, _use_new_zipfile_serialization=is_zip)
    whole = source.read_bytes()

    for size in [0, 1, 10, *range(50, len(whole) - 1, 97), len(whole) - 1]:
        source.write_bytes(whole[:size])
        with pytest.raises(ModelError, match=r"is damaged, incomplete, or not a weight file|reading it would run"):
            convert(tmp_path)
    assert names_in(tmp_path) == ["pytorch_model.bin"]


def test_a_small_file_cannot_allocate_much_memory(tmp_path: Path):
    size = (64 << 30).to_bytes(8, "little")
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x05\x96" + size + b"x.")

    with pytest.raises(ModelError, match="is damaged"):
        convert(tmp_path)


def test_attributes_set_by_a_pickle_do_not_change_tensors(tmp_path: Path):
    file = save(tmp_path, {"w": torch.ones(4)})
    with zipfile.ZipFile(file) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    (name,) = (name for name in entries if name.endswith("data.pkl"))
    state = pickle.dumps(["x", "float64", -1, (9,), (1,)], protocol=2)[2:-1]
    end = entries[name].rindex(pickle.REDUCE) + 1
    entries[name] = entries[name][:end] + state + pickle.BUILD + entries[name][end:]
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for entry, content in entries.items():
            archive.writestr(entry, content)

    convert(tmp_path)

    assert_same(load_file(tmp_path / "model.safetensors"), {"w": torch.ones(4)})


def test_randomly_changed_files_are_refused_or_read_without_a_crash(tmp_path: Path):
    source = save(tmp_path, {"w": torch.ones(50), "v": torch.ones(2, 25).T}, _use_new_zipfile_serialization=False)
    whole = source.read_bytes()
    draw = random.Random(0)

    for _ in range(2000):
        changed = bytearray(whole)
        changed[draw.randrange(400)] = draw.randrange(256)
        source.write_bytes(changed)
        try:
            read_torch_file(source)
        except TgisError:
            continue


# -- Disks and processes ----------------------------------------------------------------------------------------------


def run_convert(directory: Path, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [TGIS, "convert-to-safetensors", directory, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, **options)


@pytest.mark.parametrize("limit", [0, 1, 100, 4096, 300_000, 399_999])
def test_a_full_disk_is_reported_and_leaves_nothing_behind(limit: int, tmp_path: Path):
    save_sharded(tmp_path, 2, 400_000)
    before = names_in(tmp_path)

    command = with_file_limit([TGIS, "convert-to-safetensors", tmp_path], limit)
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    assert (result.returncode, names_in(tmp_path)) == (4, before)
    assert "No space is left in" in result.stderr


def test_a_directory_that_cannot_be_written_is_detected_before_work_begins(tmp_path: Path, monkeypatch):
    save_sharded(tmp_path, 1)

    def refuse(**options: object) -> None:  # because root ignores permissions
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(tempfile, "NamedTemporaryFile", refuse)

    with pytest.raises(UsageError, match=r"cannot be written \(Read-only file system\): converted files go next to"):
        convert(tmp_path)


def test_json_events_end_with_the_converted_files(tmp_path: Path):
    save_sharded(tmp_path, 2)

    events = [json.loads(line) for line in run_convert(tmp_path, "--json").stdout.splitlines()]

    assert [event["event"] for event in events] == ["plan", "file", "file", "done"]
    assert events[-1]["converted"] == ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]


def test_torch_is_not_imported(tmp_path: Path):
    save(tmp_path, {"w": torch.ones(2)})
    (tmp_path / "config.json").write_text("{}")
    program = (
        "import sys; from pathlib import Path\n"
        "from tgis_cli.model_files.convert.to_safetensors import convert_to_safetensors as c\n"
        "c(Path(sys.argv[1]), as_json=False); print('torch' in sys.modules)"
    )

    result = subprocess.run([sys.executable, "-c", program, tmp_path], capture_output=True, text=True, check=True)

    assert result.stdout == "False\n"


def test_two_conversions_at_once_convert_each_file_once(tmp_path: Path):
    expected = save_sharded(tmp_path, 2, 30_000_000)
    command = [TGIS, "convert-to-safetensors", tmp_path]

    both = [subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [process.communicate(timeout=60)[1] for process in both]

    assert [process.returncode for process in both] == [0, 0]
    assert sum("model-00001-of-00002.safetensors: 29 MiB" in output for output in outputs) == 1
    assert_same(read_all(tmp_path), expected)


@pytest.mark.parametrize("num_kills", NUM_KILLS)
def test_conversions_killed_at_random_moments_leave_no_damage_and_the_next_one_completes(
    tmp_path: Path, num_kills: int
):
    expected = save_sharded(tmp_path, 4, 24_000_000)
    sources = set(names_in(tmp_path))
    draw = random.Random(os.environ.get("TGIS_KILL_SEED", "0"))
    for run in range(num_kills):
        process = subprocess.Popen([TGIS, "convert-to-safetensors", tmp_path], stderr=subprocess.DEVNULL)
        time.sleep(draw.uniform(0.15, 0.6))
        process.kill()
        process.wait()

        for path in set(tmp_path.iterdir()) - {tmp_path / name for name in sources}:
            if path.suffix == ".safetensors":
                assert_same(load_file(path), {name: expected[name] for name in load_file(path)})
            elif path.suffix == ".json":
                assert_same(read_all(tmp_path), expected)
            else:
                assert path.name.startswith("."), f"run {run}"
        if run % 2:
            assert run_convert(tmp_path).returncode == 0
            assert_same(read_all(tmp_path), expected)
            assert {name for name in names_in(tmp_path) if name.startswith(".")} == set()
            for path in set(tmp_path.iterdir()) - {tmp_path / name for name in sources}:
                path.unlink()
