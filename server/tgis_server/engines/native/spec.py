"""The architecture of a model as plain data: everything that the decoder is told about its family.

``families/`` makes it from a config.json, without torch, so that the launcher can check a model in milliseconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tgis_server.model_files import Length

Norm = Literal[
    "rms",  # x / rms(x) * weight
    "rms_plus_one",  # x / rms(x) * (1 + weight), in float32, as in Gemma
    "layer",  # LayerNorm
    "layer_plus_one",  # LayerNorm with 1 + weight, as in Nemotron
]
Residual = Literal[
    "serial",  # x += attention(norm(x)); x += mlp(norm(x))
    "parallel",  # x += attention(n) + mlp(n) with one n = norm(x)
    "parallel_two_norms",  # x += attention(norm(x)) + mlp(other_norm(x))
    "sandwich",  # x += norm(attention(norm(x))); x += norm(mlp(norm(x)))
    "post_norm",  # x += norm(attention(x)); x += norm(mlp(x))
]
Activation = Literal[
    "silu",
    "gelu",
    "gelu_tanh",
    "relu",
    "relu_squared",
    "swigluoai",  # only gated: g * sigmoid(1.702 g) * (u + 1) with g = min(gate, 7) and u = up limited to +-7
]
Scoring = Literal[
    "softmax",  # of all experts' scores
    "sigmoid",  # of each score
    "sparsemixer",  # for each chosen expert, a softmax of the scores close to its own (arXiv:2310.00811)
]


@dataclass(frozen=True, slots=True)
class RopeSpec:
    """Rotary position embedding: its kind, and the parameters that this kind uses."""

    kind: str = "default"  # default, linear, dynamic, llama3, yarn or longrope
    theta: float = 10000.0
    rotary_dim: int = 0  # leading part of each head that is rotated; the rest is unchanged
    factor: float = 1.0
    max_position: int = 0  # positions that the config states; dynamic scaling begins there
    original_max_position: int = 0  # positions before stretching (llama3, yarn, longrope)
    attention_factor: float = 1.0  # multiplies cos and sin (yarn, longrope)
    low_freq_factor: float = 1.0  # llama3
    high_freq_factor: float = 4.0  # llama3
    beta_fast: float = 32.0  # yarn
    beta_slow: float = 1.0  # yarn
    is_range_truncated: bool = True  # yarn: the ramp begins and ends at whole dimensions
    short_factor: tuple[float, ...] = ()  # longrope
    long_factor: tuple[float, ...] = ()  # longrope
    is_paired: bool = False  # in the files, neighbours (0, 1), (2, 3), ... rotate together, as in GPT-J


@dataclass(frozen=True, slots=True)
class LearnedPositions:
    """A trained embedding for each position, added to the token's. Their number is a hard limit on the length."""

    num_positions: int


@dataclass(frozen=True, slots=True)
class Alibi:
    """Scores fall with the distance between query and key, at a slope for each head (arXiv:2108.12409)."""

    slopes: tuple[float, ...]  # per query head


@dataclass(frozen=True, slots=True)
class RelativePositions:
    """A trained bias on scores for each head and bucket of distances, the same in all layers (arXiv:1910.10683).

    Half of the buckets hold one distance each; the others hold ranges that grow up to ``max_distance``.
    """

    num_buckets: int
    max_distance: int


@dataclass(frozen=True, slots=True)
class Mixture:
    """A mixture of experts in place of an MLP. Each token uses the MLPs that a router chooses; results are weighted.

    The router scores the experts with a linear layer. ``scoring`` turns scores into values. The experts with the
    largest values are chosen, and their values are the weights.
    """

    num_experts: int
    num_chosen: int  # experts of each token
    intermediate_size: int  # of each expert
    scoring: Scoring = "softmax"
    is_normalized: bool = False  # the weights of a token's experts are divided by their sum
    scale: float = 1.0  # multiplies the weights
    jitter: float = 0.0  # sparsemixer: half of the relative distance of scores that are close
    has_choice_bias: bool = False  # a number for each expert is added to values when they are compared
    has_router_bias: bool = False
    has_bias: bool = False  # the experts' linear layers have biases
    num_groups: int = 1  # of experts, by index
    num_chosen_groups: int = 1  # only experts of the groups whose two best values have the largest sums are compared
    shared_size: int = 0  # intermediate size of one more MLP, which all tokens use; 0: there is none
    is_shared_gated: bool = False  # its result is multiplied by the sigmoid of a linear layer with one output
    layers: tuple[bool, ...] = ()  # which layers have experts, the others having an MLP; empty = all


Positions = RopeSpec | LearnedPositions | Alibi | RelativePositions


@dataclass(frozen=True, slots=True)
class DecoderSpec:
    """The architecture of a decoder. The defaults are Llama's."""

    family: str
    # Sizes
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    # Norms and the order of a layer
    norm_eps: float
    positions: Positions | None  # None: only causality tells the model the order
    length: Length
    eos_ids: tuple[int, ...]
    norm: Norm = "rms"
    qk_norm: Norm | None = None  # over each head of queries and keys, before rotation
    is_qk_norm_joint: bool = False  # over all heads of queries together, and over all of keys
    residual: Residual = "serial"
    has_embedding_norm: bool = False
    # MLP
    activation: Activation = "silu"
    is_mlp_gated: bool = True  # down(activation(gate(x)) * up(x)), else down(activation(up(x)))
    mixture: Mixture | None = None
    # Biases
    has_norm_weight: bool = True
    has_norm_bias: bool = False
    has_qkv_bias: bool = False
    has_o_bias: bool = False
    has_mlp_bias: bool = False
    has_head_bias: bool = False
    is_head_tied: bool = False  # the output head is the embedding
    # Scales and limits
    qkv_limit: float = 0.0  # queries, keys and values are limited to +-this before they are used; 0 = off
    embedding_scale: float = 1.0
    is_embedding_scale_rounded: bool = False  # to the weights' dtype, as in Gemma; up to 0.4 % off in bfloat16
    residual_scale: float = 1.0  # multiplies the outputs of attention and MLP
    attention_scale: float = 0.0  # multiplies query-key products
    attention_cap: float = 0.0  # c: scores become c * tanh(score / c), before masks and biases; 0 = off
    logits_scale: float = 1.0  # multiplies logits
    logits_cap: float = 0.0  # the same for logits, after scaling
    # Attention
    windows: tuple[int | None, ...] = ()  # per layer: tokens that a query sees, itself included; None = all
    window_rope: RopeSpec | None = None  # on layers with a window, in place of ``positions``; None: the same
    rotated_layers: tuple[bool, ...] = ()  # per layer: whether queries and keys are rotated; empty = all
    has_sinks: bool = False  # each query head has one more score in its softmax, for no key
    # The files
    dtype: str | None = None  # as stated in the config, if at all
    warnings: tuple[str, ...] = ()  # from reading the files

    @property
    def num_kv_groups(self) -> int:
        """Query heads per KV head."""
        return self.num_heads // self.num_kv_heads

    def has_experts(self, layer: int) -> bool:
        """Whether a mixture of experts is in place of the layer's MLP."""
        return self.mixture is not None and (not self.mixture.layers or self.mixture.layers[layer])

    @property
    def inner_sizes(self) -> set[int]:
        """The intermediate sizes of all MLPs, experts included."""
        sizes = {self.intermediate_size for layer in range(self.num_layers) if not self.has_experts(layer)}
        if self.mixture:
            sizes |= {self.mixture.intermediate_size, self.mixture.shared_size} - {0}
        return sizes

    @property
    def ropes(self) -> tuple[RopeSpec, ...]:
        """That of layers without a window and, if it differs, that of layers with one; none if nothing is rotated."""
        return tuple(rope for rope in (self.rope, self.window_rope) if rope is not None)

    def rope_index(self, layer: int) -> int | None:
        """Which of ``ropes`` the layer uses."""
        if not self.ropes or (self.rotated_layers and not self.rotated_layers[layer]):
            return None
        return int(self.window_rope is not None and self.windows[layer] is not None)

    @property
    def rope(self) -> RopeSpec | None:
        return self.positions if isinstance(self.positions, RopeSpec) else None


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderDecoderSpec(DecoderSpec):
    """A decoder whose layers also attend to an encoder's output for another text. The two share one embedding.

    The inherited fields (sizes, number of layers) describe the decoder. In each of its layers, keys and values of an
    encoder token have the same size as those of a decoder token.
    """

    encoder: DecoderSpec  # has no head, and each of its tokens sees all others
    start_id: int  # first token of the decoder's sequence
