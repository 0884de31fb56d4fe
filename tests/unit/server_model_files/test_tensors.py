"""Which tensor in the files is used: decided by content, with a warning if config.json disagrees."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from in_process import run_in_process
from test_families_checkpoint import SPEC, shapes_of, write_safetensors
from tgis_server.engines.native.checkpoint.inspect import Checkpoint, inspect_checkpoint
from tgis_server.errors import ModelError
from tgis_server.model_files import TensorInfo, have_same_content, read_header

TIED = replace(SPEC, is_head_tied=True)
EMBEDDING, HEAD, NORM = "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"
VOCAB_BY_HIDDEN = SPEC.vocab_size * SPEC.hidden_size


def inspected(
    directory: Path, *, is_tied: bool = False, without: str = "", filled: dict[str, int] | None = None, **more: int
) -> Checkpoint:
    shapes = {name: shape for name, shape in shapes_of(SPEC).items() if name != without}
    shapes |= {name: (size,) for name, size in more.items()}
    write_safetensors(directory / "model.safetensors", shapes, filled=filled)
    return inspect_checkpoint(directory, TIED if is_tied else SPEC, 1)


def in_two_files(directory: Path, copied: str, named: str | None) -> Checkpoint:
    """A model in a.safetensors, with a second tensor ``copied`` in b.safetensors; the index says it is in ``named``."""
    shapes = shapes_of(SPEC)
    write_safetensors(directory / "a.safetensors", shapes)
    write_safetensors(directory / "b.safetensors", {copied: shapes[copied], "more": (1,)}, filled={copied: 1})
    weight_map = {**dict.fromkeys(shapes, "a.safetensors"), "more": "b.safetensors", copied: named}
    index = {"weight_map": {name: file for name, file in weight_map.items() if file}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    return inspect_checkpoint(directory, SPEC, 1)


def test_a_head_that_differs_from_the_embedding_is_used_with_a_warning(tmp_path: Path) -> None:
    checkpoint = inspected(tmp_path, is_tied=True, filled={HEAD: 1})

    assert not checkpoint.spec.is_head_tied
    assert checkpoint.num_elements(0) == inspect_checkpoint(tmp_path, SPEC, 1).num_elements(0)
    [warning] = checkpoint.warnings
    assert "tie_word_embeddings" in warning
    assert "lm_head.weight in model.safetensors differs" in warning


def test_a_difference_in_the_last_byte_is_found(tmp_path: Path) -> None:
    inspected(tmp_path, is_tied=True, filled={EMBEDDING: 1, HEAD: 1})
    file = tmp_path / "model.safetensors"
    head = read_header(file)[HEAD]
    data = bytearray(file.read_bytes())
    data[head.start + head.num_bytes - 1] = 2
    file.write_bytes(data)

    assert not inspect_checkpoint(tmp_path, TIED, 1).spec.is_head_tied


def test_a_head_equal_to_the_embedding_stays_tied_and_takes_no_memory(tmp_path: Path) -> None:
    checkpoint = inspected(tmp_path, is_tied=True, filled={EMBEDDING: 1, HEAD: 1})

    assert (checkpoint.spec.is_head_tied, checkpoint.warnings) == (True, ())
    assert inspect_checkpoint(tmp_path, SPEC, 1).num_elements(0) - checkpoint.num_elements(0) == VOCAB_BY_HIDDEN


def test_a_head_without_data_is_planned_as_untied(tmp_path: Path) -> None:
    """A plan of a model on the hub has only headers, so it assumes the case that needs more memory."""
    checkpoint = inspected(tmp_path, is_tied=True)

    assert (checkpoint.spec.is_head_tied, checkpoint.warnings) == (False, ())


def test_a_head_of_another_dtype_is_reported_by_its_dtype(tmp_path: Path) -> None:
    shapes = shapes_of(SPEC)
    head = {HEAD: shapes.pop(HEAD)}
    write_safetensors(tmp_path / "a.safetensors", shapes)
    write_safetensors(tmp_path / "b.safetensors", head, "F16", 2)

    [warning] = inspect_checkpoint(tmp_path, TIED, 1).warnings

    stored = f"{HEAD} in b.safetensors is stored as F16, whereas {EMBEDDING} in a.safetensors is stored as F32,"
    assert stored in warning


@pytest.mark.parametrize("without", [EMBEDDING, HEAD])
def test_a_tied_model_needs_either_head_or_embedding(without: str, tmp_path: Path) -> None:
    checkpoint = inspected(tmp_path, is_tied=True, without=without)

    assert (checkpoint.spec.is_head_tied, checkpoint.warnings) == (True, ())
    assert checkpoint.tensors[EMBEDDING].name == ({EMBEDDING, HEAD} - {without}).pop()


def test_an_untied_model_without_a_head_is_refused_with_advice(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no lm_head\.weight.*set tie_word_embeddings to true"):
        inspected(tmp_path, without=HEAD)


def test_two_spellings_with_equal_contents_are_one_tensor(tmp_path: Path) -> None:
    checkpoint = inspected(tmp_path, **{"norm.weight": SPEC.hidden_size})

    assert checkpoint.warnings == ()


def test_two_spellings_with_different_contents_are_refused(tmp_path: Path) -> None:
    advice = "save the model again with one of them, or download the file again"
    with pytest.raises(
        ModelError, match=rf"model\.norm\.weight in model\.safetensors and as norm\.weight in .*{advice}"
    ):
        inspected(tmp_path, **{"norm.weight": SPEC.hidden_size}, filled={NORM: 1})


def plan_it(model_dir: Path) -> None:
    config = {
        **{"model_type": "llama", "tie_word_embeddings": True, "num_hidden_layers": SPEC.num_layers},
        **{"vocab_size": SPEC.vocab_size, "hidden_size": SPEC.hidden_size, "num_attention_heads": SPEC.num_heads},
        **{"intermediate_size": SPEC.intermediate_size, "num_key_value_heads": SPEC.num_kv_heads},
    }
    (model_dir / "config.json").write_text(json.dumps(config))
    run_in_process("plan", model_dir, "--json", environ={"HOME": "/nowhere"})


@pytest.mark.parametrize("read", [lambda model: inspect_checkpoint(model, TIED, 1), plan_it])
def test_contents_are_compared_once(read: Callable[[Path], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    shapes = shapes_of(SPEC)
    write_safetensors(tmp_path / "a.safetensors", shapes)
    write_safetensors(tmp_path / "b.safetensors", {NORM: shapes[NORM], "model." + HEAD: shapes[HEAD]})
    compared: list[frozenset[object]] = []

    def compare(first: TensorInfo, second: TensorInfo) -> bool:
        compared.append(frozenset((first, second)))
        return have_same_content(first, second)

    for module in ("engines.native.checkpoint.inspect", "model_files.tensors"):
        monkeypatch.setattr(f"tgis_server.{module}.have_same_content", compare)

    read(tmp_path)

    assert len(compared) == len(set(compared)) > 1


@pytest.mark.parametrize("named", ["a.safetensors", "b.safetensors"])
def test_the_index_decides_between_copies_that_differ(named: str, tmp_path: Path) -> None:
    checkpoint = in_two_files(tmp_path, NORM, named)

    assert checkpoint.tensors[NORM].file.name == named
    assert f"{NORM} in {named} is used" in checkpoint.warnings[0]


def test_copies_that_differ_are_refused_if_the_index_names_neither(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"model\.norm\.weight exists twice .* remove the file that does not"):
        in_two_files(tmp_path, NORM, None)


def test_unused_tensors_are_a_warning(tmp_path: Path) -> None:
    checkpoint = inspected(tmp_path, **{"model.layers.2.input_layernorm.weight": SPEC.hidden_size})

    [warning] = checkpoint.warnings
    assert "1 of 22 tensors in the files is not used, such as model.layers.2.input_layernorm.weight: " in warning


def test_buffers_in_old_checkpoints_are_ignored_silently(tmp_path: Path) -> None:
    assert inspected(tmp_path, **{"model.layers.0.self_attn.rotary_emb.inv_freq": 4}).warnings == ()
