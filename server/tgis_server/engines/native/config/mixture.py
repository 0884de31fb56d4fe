"""Mixtures of experts, from a config.json."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tgis_server.engines.native.config.config_file import ConfigFile
from tgis_server.engines.native.spec import Mixture


def read_mixture(
    config: ConfigFile,
    num_experts: str = "num_experts",
    num_chosen: str = "num_experts_per_tok",
    intermediate_size: str = "moe_intermediate_size",
    **words: Any,
) -> Mixture:
    """What every mixture has, under these keys. ``words``: other words of the mixture."""
    mixture = Mixture(
        config.integer(num_experts), config.integer(num_chosen), config.integer(intermediate_size), **words
    )
    if mixture.num_chosen > mixture.num_experts:
        raise config.fail(f"{num_chosen} is {mixture.num_chosen}, but the model has {mixture.num_experts} experts.")
    return mixture


def read_grouped_mixture(config: ConfigFile) -> Mixture:
    """The style of DeepSeek-V3: sigmoids, a bias for the choice, groups, shared experts; the first layers are dense."""
    mixture = read_mixture(
        config,
        "n_routed_experts",
        scoring="sigmoid",
        has_choice_bias=True,
        is_normalized=config.flag("norm_topk_prob"),
        scale=config.number("routed_scaling_factor"),
        num_groups=config.integer("n_group"),
        num_chosen_groups=config.integer("topk_group"),
    )
    groups, kept = mixture.num_groups, mixture.num_chosen_groups
    if mixture.num_experts % groups:
        raise config.fail(f"{mixture.num_experts} experts cannot be divided into {groups} groups (n_group).")
    if kept > groups or mixture.num_chosen > mixture.num_experts // groups * kept:
        raise config.fail(f"{kept} of {groups} groups (topk_group) do not hold {mixture.num_chosen} experts.")
    dense = config.integer("first_k_dense_replace", at_least=0)
    return replace(
        mixture,
        shared_size=mixture.intermediate_size * config.integer("n_shared_experts", at_least=0),
        layers=tuple(layer >= dense for layer in range(config.integer("num_hidden_layers"))),
    )


def read_qwen_mixture(config: ConfigFile, **words: Any) -> Mixture:
    """Dense layers are those that ``mlp_only_layers`` lists, and all but each ``decoder_sparse_step``-th."""
    dense, interval = config.integers("mlp_only_layers"), config.integer("decoder_sparse_step")
    layers = range(config.integer("num_hidden_layers"))
    return read_mixture(
        config,
        is_normalized=config.flag("norm_topk_prob"),
        layers=tuple(layer not in dense and (layer + 1) % interval == 0 for layer in layers),
        **words,
    )
