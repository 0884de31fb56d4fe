"""Which files are the weights: every command selects the same ones."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path

import pytest

from tgis_cli.model_files import DEMO_MODEL_DIR
from tgis_cli.model_files.cache.folder import CacheFolder
from tgis_cli.model_files.download.selection import parse_extensions, select_names
from tgis_cli.model_files.inventory import list_models
from tgis_server.engines.native.checkpoint.inspect import inspect_checkpoint
from tgis_server.engines.native.families import read_spec
from tgis_server.errors import ModelError
from tgis_server.model_files import SAFETENSORS, WeightFiles, choose_weights, find_weights

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
TWO = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
THREE = tuple(f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3))
COMMIT = "c" * 40


def choose(*names: str, index: Iterable[str] = ()) -> WeightFiles:
    return choose_weights(names, SAFETENSORS, lambda _: index)


def refuse_to_read(index: str) -> Iterable[str]:
    raise ModelError(f"{index} is damaged")


# -- Names alone ------------------------------------------------------------------------------------------------------


def test_a_single_whole_file_takes_precedence_over_an_unread_index():
    names = [SINGLE, INDEX, *TWO, "consolidated.safetensors"]

    assert choose_weights(names, SAFETENSORS, refuse_to_read) == WeightFiles((SINGLE,))


def test_an_index_takes_precedence_over_other_names():
    assert choose(INDEX, *TWO, *THREE, "tuned.safetensors", index=TWO) == WeightFiles(TWO, index=INDEX)


@pytest.mark.parametrize("missing", [TWO[1], "folder/model.safetensors", "../model.safetensors"])
def test_files_named_by_an_index_must_exist_next_to_it(missing: str):
    names = (INDEX, TWO[0], "folder/model.safetensors")

    assert choose(*names, index=(TWO[0], missing)).missing == (missing,)


@pytest.mark.parametrize(
    "names",
    [
        TWO,
        ("tuned.safetensors",),
        ("a.safetensors", "b.safetensors"),
        ("model-00000-of-00002.safetensors", "model-00001-of-00002.safetensors"),
        ("model.layers.0.safetensors", "model.layers.1.safetensors"),
        ("consolidated.safetensors",),
        ("model.fp16.safetensors",),
    ],
)
def test_without_an_index_all_files_except_copies_are_taken(names: tuple[str, ...]):
    assert choose(*names) == WeightFiles(names)


@pytest.mark.parametrize(
    "other",
    [
        "consolidated.safetensors",
        "consolidated-00001-of-00002.safetensors",
        "adapter_model.safetensors",
        "original/model.safetensors",
        "model.fp16.safetensors",
        "model.bf16-00001-of-00009.safetensors",
        "model-00001-of-00009.fp32.safetensors",
        "model-00001-of-00003.safetensors",
        "training_state.safetensors",
        "optimizer.safetensors",
        "._model-00001-of-00002.safetensors",
        "pytorch_model.bin",
    ],
)
def test_copies_leftovers_and_other_files_are_left_out(other: str):
    assert choose(*TWO, other) == WeightFiles(TWO)


def test_one_of_several_dtypes_is_enough():
    assert choose("model.fp16.safetensors", "model.bf16.safetensors") == WeightFiles(("model.bf16.safetensors",))


def test_numbers_in_names_show_what_is_missing():
    assert choose(THREE[0], THREE[2]) == WeightFiles(THREE, (THREE[1],))


def test_an_impossible_number_of_files_is_ignored():
    name = "model-1-of-99999999999.safetensors"

    assert choose(name) == WeightFiles((name,))


def test_an_interrupted_conversion_is_incomplete():
    names = ("a.bin", "b.bin", "a.safetensors")

    assert choose(*names) == WeightFiles(("a.safetensors", "b.safetensors"), ("b.safetensors",), is_half_converted=True)


# -- Sentences --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        ([], "neither model.safetensors nor other weights in safetensors format; download the model first"),
        (["pytorch_model.bin", "training_args.bin"], "it has pytorch_model.bin: convert it with `tgis convert-to-saf"),
        (["adapter_model.safetensors"], "adapter_model.safetensors is an adapter to another model: name that model"),
        (
            ["training-7.safetensors"],
            "training-7.safetensors looks like a file of a training run: if it is the model",
        ),
        (["consolidated.00.pth"], "it has consolidated.00.pth, a format that is not supported"),
        ([TWO[0]], f"lacks 1 of 2 weight files according to the numbering of the others .such as {TWO[1]}"),
        (["a.bin", "b.bin", "a.safetensors"], "that a conversion makes .*: complete it with `tgis convert-to-saf"),
    ],
)
def test_a_directory_without_complete_weights_is_refused_with_advice(names: list[str], sentence: str, tmp_path: Path):
    for name in names:
        (tmp_path / name).touch()

    with pytest.raises(ModelError, match=sentence):
        find_weights(tmp_path)


def test_a_stale_index_is_named(tmp_path: Path):
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": dict(enumerate(TWO))}))
    (tmp_path / "tuned.safetensors").touch()

    with pytest.raises(
        ModelError, match=f"2 of 2 weight files that {INDEX} names .* or remove {INDEX} if it belongs to"
    ):
        find_weights(tmp_path)


def test_an_index_may_contain_relative_paths(tmp_path: Path):
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"x": "./a.safetensors", "y": "a.safetensors"}}))
    (tmp_path / "a.safetensors").touch()

    assert find_weights(tmp_path).names == ("a.safetensors",)


def test_weights_in_a_folder_are_refused_with_advice_to_move_them(tmp_path: Path):
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"x": "w/a.safetensors"}}))
    (tmp_path / "w").mkdir()
    (tmp_path / "w/a.safetensors").touch()

    with pytest.raises(ModelError, match=r"such as w/a\.safetensors.: it is in a folder, which is not read: move it"):
        find_weights(tmp_path)


# -- Every command ----------------------------------------------------------------------------------------------------


def split_demo_weights(directory: Path, names: tuple[str, ...]) -> None:
    """Write the demo model's tensors to files of these names."""
    from safetensors.torch import load_file, save_file

    tensors = sorted(load_file(DEMO_MODEL_DIR / SINGLE).items())
    for number, name in enumerate(names):
        save_file(dict(tensors[number :: len(names)]), directory / name)


def no_index(directory: Path) -> None:
    split_demo_weights(directory, TWO)


def another_name(directory: Path) -> None:
    split_demo_weights(directory, ("tuned.safetensors",))


def stale_index(directory: Path) -> None:
    split_demo_weights(directory, (SINGLE,))
    (directory / INDEX).write_text(json.dumps({"weight_map": dict(enumerate(TWO))}))


def damaged_copy(directory: Path) -> None:
    split_demo_weights(directory, TWO)
    (directory / "consolidated.safetensors").write_bytes(b"cut")


@pytest.mark.parametrize("lay_out", [no_index, another_name, stale_index, damaged_copy])
def test_the_selected_files_are_listed_as_complete_and_start(lay_out, tmp_path: Path):
    folder = CacheFolder(tmp_path, "org/demo")
    directory = folder.snapshot(COMMIT)
    directory.mkdir(parents=True)
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (directory / name).write_bytes((DEMO_MODEL_DIR / name).read_bytes())
    lay_out(directory)
    folder.write_ref("main", COMMIT)
    names = [path.name for path in directory.iterdir()]

    def read_text(name: str) -> str:
        return (directory / name).read_text()

    taken = select_names(names, parse_extensions(".safetensors"), read_text, with_pytorch=True)
    (listed,) = list_models(tmp_path)
    started = inspect_checkpoint(directory, read_spec(directory), 1)

    used = {info.file.name for info in started.tensors.values()}
    assert used == {name for name in taken if name.endswith(".safetensors")}
    assert listed.problems == ()


@pytest.mark.parametrize("name", ["model.norm.weight", "norm.weight"])
def test_ambiguous_tensors_are_a_problem_in_the_listing_too(name: str, tmp_path: Path):
    from safetensors.torch import load_file, save_file

    folder = CacheFolder(tmp_path, "org/demo")
    directory = shutil.copytree(DEMO_MODEL_DIR, folder.snapshot(COMMIT))
    folder.write_ref("main", COMMIT)
    (directory / SINGLE).rename(directory / "a.safetensors")
    save_file({name: load_file(directory / "a.safetensors")["model.norm.weight"] + 1}, directory / "b.safetensors")
    before = (directory / "a.safetensors").stat().st_atime_ns

    (listed,) = list_models(tmp_path)

    assert (directory / "a.safetensors").stat().st_atime_ns == before
    with pytest.raises(ModelError) as start:
        inspect_checkpoint(directory, read_spec(directory), 1)
    assert listed.problems == (str(start.value).rstrip("."),)
