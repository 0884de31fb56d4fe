"""The files that a download selects."""

from __future__ import annotations

import json

import pytest

from tgis_cli.model_files.download.selection import COMPANIONS, parse_extensions, select_names
from tgis_server.errors import ModelError, UsageError

TOKENIZER_FILES = ["merges.txt", "qwen.tiktoken", "spiece.model", "tokenizer.json", "vocab.txt"]
SHARDS = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]


def index_of(*files: str) -> str:
    return json.dumps({"weight_map": {f"w{number}": file for number, file in enumerate(files)}})


def select(
    names: list[str], extension: str = ".safetensors", *, with_pytorch: bool = True, **indexes: str
) -> list[str]:
    texts = {f"{name.replace('_', '.')}.index.json": text for name, text in indexes.items()}
    return select_names(names, parse_extensions(extension), lambda name: texts[name], with_pytorch=with_pytorch)


def test_a_single_extension_brings_configuration_and_tokenizers_along():
    names = ["chat_template.jinja", "config.json", "model.safetensors", "modeling_x.py", "README.md", *TOKENIZER_FILES]

    assert select([*names, "picture.png", "model.onnx"]) == sorted(names)


def test_several_extensions_are_taken_literally():
    assert select(["config.json", "a.bin", "merges.txt"], ".bin,.json") == ["a.bin", "config.json"]


@pytest.mark.parametrize("companion", COMPANIONS)
def test_a_companion_extension_brings_nothing_else_along(companion: str):
    assert parse_extensions(companion) == (companion,)


def test_leading_dots_and_spaces_are_optional():
    assert parse_extensions(" bin , .json ") == (".bin", ".json")


def test_an_empty_list_of_extensions_is_refused():
    with pytest.raises(UsageError, match="--extension is empty"):
        parse_extensions(" , ")


@pytest.mark.parametrize("word", ["training_args.json", "arguments.json", "my_args.model"])
def test_files_of_a_training_run_are_left_out(word: str):
    assert select(["model.safetensors", word]) == ["model.safetensors"]


def test_files_in_folders_are_left_out():
    assert select(["model.safetensors", "original/params.json", "onnx/model.safetensors"]) == ["model.safetensors"]


def test_weights_that_the_index_does_not_name_are_left_out():
    names = [*SHARDS, "consolidated.safetensors", "tuned.safetensors", "model.safetensors.index.json"]

    assert select(names, model_safetensors=index_of(*SHARDS)) == [*SHARDS, "model.safetensors.index.json"]


def test_an_index_next_to_a_single_whole_file_is_ignored():
    assert select(["model.safetensors", "model.safetensors.index.json", SHARDS[0]]) == ["model.safetensors"]
    assert select(["pytorch_model.bin", "pytorch_model.bin.index.json"]) == ["pytorch_model.bin"]


def test_an_adapter_alone_is_taken_as_it_is():
    names = ["adapter_config.json", "adapter_model.safetensors"]

    assert select(names) == names


def test_a_missing_shard_is_refused_even_without_an_index():
    with pytest.raises(ModelError, match="The numbering of its weights requires model-00002-of-00002"):
        select([SHARDS[0], "config.json"])


def test_pytorch_weights_are_taken_if_there_are_no_safetensors():
    names = ["config.json", "pytorch_model.bin", "optimizer.pt", "training_args.bin"]

    assert select(names) == ["config.json", "pytorch_model.bin"]


def test_pytorch_weights_are_not_taken_without_conversion():
    assert select(["config.json", "pytorch_model.bin"], with_pytorch=False) == ["config.json"]


def test_copies_in_another_format_are_left_out_with_their_index():
    names = ["model.safetensors", "pytorch_model.bin", "pytorch_model.bin.index.json", "tf_model.h5"]

    assert select(names) == ["model.safetensors"]


def test_an_index_that_names_missing_files_is_refused():
    with pytest.raises(ModelError, match="names model-00002-of-00002"):
        select([SHARDS[0], "model.safetensors.index.json"], model_safetensors=index_of(*SHARDS))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{", "is not valid JSON"),
        ("[]", "holds a list"),
        ("{}", "is not a weight index"),
        ('{"weight_map": 3}', "is not a weight index"),
    ],
)
def test_a_broken_index_is_refused(text: str, sentence: str):
    with pytest.raises(ModelError, match=f"model.safetensors.index.json {sentence}"):
        select([*SHARDS, "model.safetensors.index.json"], model_safetensors=text)
