"""Every word of a spec matters: if it is changed, some family's model answers differently."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from test_native_families import MODELS
from tgis_server.engines.native.families import FAMILIES
from tgis_server.engines.native.spec import Alibi, DecoderSpec, Mixture, RopeSpec
from tgis_server.wire.messages import Wanted
from tiny import Driver, Job, Model, load, prompt_of

# Names of models, and what is changed. A mapping replaces parts of a word.
CHANGES: dict[str, tuple[str, Any]] = {
    "norm": ("llama", "rms_plus_one"),
    "norm_eps": ("llama", 1.0),
    "qk_norm": ("qwen3", None),
    "residual": ("gpt-neox", "serial"),
    "has_embedding_norm": ("bloom", False),
    "activation": ("llama", "relu"),
    "has_norm_weight": ("olmo", True),
    "has_norm_bias": ("starcoder2", False),
    "has_qkv_bias": ("llama-biases", False),
    "has_o_bias": ("llama-biases", False),
    "has_mlp_bias": ("llama-biases", False),
    "has_head_bias": ("phi", False),
    "qkv_limit": ("mpt-limited", 0.0),
    "embedding_scale": ("gemma", 1.0),
    "residual_scale": ("granite", 1.0),
    "attention_scale": ("granite", 1.0),
    "attention_cap": ("gemma2", 0.0),
    "logits_scale": ("granite", 1.0),
    "logits_cap": ("gemma2", 0.0),
    "windows": ("mistral-window", (None, None, None)),
    "rotated_layers": ("smollm3", (True, True, True)),
    "window_rope": ("gemma3", None),
    "positions": ("llama", RopeSpec(theta=77.0, rotary_dim=16)),
    "positions.rotary_dim": ("phi", RopeSpec(rotary_dim=4)),
    "positions.is_paired": ("gptj", RopeSpec(rotary_dim=8)),
    "positions.slopes": ("bloom", Alibi((0.5,) * 6)),
    "has_sinks": ("gpt-oss", False),
    "mixture.num_chosen": ("mixtral", {"num_chosen": 1}),
    "mixture.scoring": ("mixtral", {"scoring": "sigmoid"}),
    "mixture.is_normalized": ("mixtral", {"is_normalized": False}),
    "mixture.scale": ("glm4-moe", {"scale": 1.0}),
    "mixture.jitter": ("phimoe", {"jitter": 0.01}),
    "mixture.has_choice_bias": ("glm4-moe", {"has_choice_bias": False}),
    "mixture.has_router_bias": ("gpt-oss", {"has_router_bias": False}),
    "mixture.has_bias": ("gpt-oss", {"has_bias": False}),
    "mixture.num_groups": ("glm4-moe", {"num_groups": 8}),
    "mixture.num_chosen_groups": ("glm4-moe", {"num_chosen_groups": 4}),
    "mixture.shared_size": ("granitemoeshared", {"shared_size": 0}),
    "mixture.is_shared_gated": ("qwen2-moe", {"is_shared_gated": False}),
}
# Words without which there is no model, and those that tests of their own cover.
OTHERS = {
    *("family", "vocab_size", "hidden_size", "intermediate_size", "num_layers"),
    *(
        "num_heads",
        "num_kv_heads",
        "head_dim",
        "is_mlp_gated",
        "is_qk_norm_joint",
        "is_head_tied",
    ),  # they decide which tensors there are
    *("length", "eos_ids", "dtype", "warnings"),  # not of the computation
    "is_embedding_scale_rounded",  # test_gemma_rounds_its_embedding_scale
}
DECIDE_TENSORS = {"num_experts", "intermediate_size", "layers"}  # of a mixture


def logprobs_of(tiny: Model, run_dir: Path) -> list[float]:
    """Of a prompt's tokens after the first."""
    run_dir.mkdir()
    job = Job(prompt_of(40, seed=1), 1, wanted=Wanted(logprobs=True, input_tokens=True))
    Driver(load(tiny.directory, run_dir)).run([job])
    return [detail.logprob for detail in job.prompt_details]


@pytest.mark.parametrize("word", CHANGES)
def test_a_changed_word_changes_log_probabilities(
    word: str, model: Callable[..., Model], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, value = CHANGES[word]
    tiny = model(**MODELS[name])
    before = logprobs_of(tiny, tmp_path / "before")
    family = FAMILIES[MODELS[name]["model_type"]]
    read = family.read

    def read_changed(config: Any) -> DecoderSpec:
        spec: DecoderSpec = read(config)
        name = word.partition(".")[0]
        changed = replace(spec, **{name: replace(getattr(spec, name), **value) if isinstance(value, dict) else value})
        assert changed != spec
        return changed

    monkeypatch.setattr(family, "read", read_changed)
    after = logprobs_of(tiny, tmp_path / "after")

    assert max(abs(a - b) for a, b in zip(before, after, strict=True)) > 1e-2


def test_every_word_is_changed_or_covered_elsewhere() -> None:
    words = {field.name for field in fields(DecoderSpec)}

    assert {word.partition(".")[0] for word in CHANGES} == words - OTHERS
    assert words >= OTHERS
    of_mixtures = {word.removeprefix("mixture.") for word in CHANGES if word.startswith("mixture.")}
    assert of_mixtures == {field.name for field in fields(Mixture)} - DECIDE_TENSORS
