"""The engine takes the same tensors from a checkpoint as transformers, on one shard and on two."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tiny import Driver, Job, Model, Oracle, assert_same_tokens, edit_config, load, prompt_of

Tensors = dict[str, torch.Tensor]
Edit = Callable[[Tensors], Tensors]
FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "granite", "phi3")
PROMPT = prompt_of(30, 1)
NUM_TOKENS = 12


def bare(tensors: Tensors) -> Tensors:
    return {name.removeprefix("model."): tensor for name, tensor in tensors.items()}


def doubled(tensors: Tensors) -> Tensors:
    return {f"model.{name}": tensor for name, tensor in tensors.items()}


def with_same_head(tensors: Tensors) -> Tensors:
    return {**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"].clone()}


def with_head_alone(tensors: Tensors) -> Tensors:
    return {name: tensor for name, tensor in tensors.items() if name != "model.embed_tokens.weight"}


def with_old_buffers(tensors: Tensors) -> Tensors:
    return {**tensors, "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}


def edited(tiny: Model, directory: Path, edit: Edit, **config: Any) -> Model:
    """A copy of a checkpoint with other tensors in its file."""
    shutil.copytree(tiny.directory, directory)
    edit_config(directory, **config)
    file = directory / "model.safetensors"
    save_file(edit(load_file(file)), file, metadata={"format": "pt"})
    return Model(directory, Oracle(directory))


def assert_as_transformers(other: Model, ours: list[int]) -> None:
    assert_same_tokens(other.oracle, PROMPT, ours, other.expected(PROMPT, NUM_TOKENS))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_separate_head_is_used_although_config_json_calls_it_tied(
    family: str, model: Callable[..., Model], tmp_path: Path
) -> None:
    """The files are saved from the base model, so the names in them have no prefix."""
    other = edited(model(family), tmp_path / "other", bare, tie_word_embeddings=True)

    ours = Driver(load(other.directory, tmp_path)).run([Job(PROMPT, NUM_TOKENS)])[0]

    assert_as_transformers(other, ours)
    assert ours == model(family).expected(PROMPT, NUM_TOKENS)


@pytest.mark.parametrize(
    ("edit", "is_tied"),
    [(doubled, False), (with_same_head, True), (with_head_alone, True), (with_old_buffers, False)],
    ids=["doubled prefix", "same head", "only the head", "old buffers"],
)
def test_tensors_are_found_as_in_transformers(
    edit: Edit, is_tied: bool, model: Callable[..., Model], tmp_path: Path
) -> None:
    other = edited(model("llama"), tmp_path / "other", edit, tie_word_embeddings=is_tied)

    ours = Driver(load(other.directory, tmp_path)).run([Job(PROMPT, NUM_TOKENS)])[0]

    assert_as_transformers(other, ours)


@pytest.mark.parametrize("family", ["llama", "phi3"])
def test_two_shards_use_the_same_tensors(
    family: str, model: Callable[..., Model], shards: Callable[..., tuple[Driver, list[Any]]], tmp_path: Path
) -> None:
    other = edited(model(family), tmp_path / "other", bare, tie_word_embeddings=True)

    ours = shards(other, 2)[0].run([Job(PROMPT, NUM_TOKENS)])[0]

    assert_as_transformers(other, ours)


def test_the_copy_of_a_tensor_that_the_index_names_is_loaded(model: Callable[..., Model], tmp_path: Path) -> None:
    tiny = model("llama")
    directory = tmp_path / "two-files"
    shutil.copytree(tiny.directory, directory)
    tensors = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    save_file(tensors, directory / "a.safetensors")
    save_file({"lm_head.weight": -tensors["lm_head.weight"], "extra": torch.ones(1)}, directory / "b.safetensors")
    weight_map = {**dict.fromkeys(tensors, "a.safetensors"), "extra": "b.safetensors"}
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))

    ours = Driver(load(directory, tmp_path)).run([Job(PROMPT, NUM_TOKENS)])[0]

    assert ours == tiny.expected(PROMPT, NUM_TOKENS)
