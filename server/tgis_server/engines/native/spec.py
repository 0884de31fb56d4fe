"""What a decoder is, as plain data: the decoder reads this and nothing else about its family.

Made by ``families/`` from a config.json, without torch, so that the launcher can check a model in milliseconds.
"""

from __future__ import annotations

from dataclasses import dataclass

from tgis_server.model_files import Length


@dataclass(frozen=True, slots=True)
class RopeSpec:
    """Rotary position embedding: the scheme and the numbers that its kind uses."""

    kind: str = "default"  # default, linear, dynamic, llama3, yarn or longrope
    theta: float = 10000.0
    rotary_dim: int = 0  # leading part of each head that is rotated; the rest passes through
    factor: float = 1.0
    max_position: int = 0  # positions the config promises; where dynamic scaling begins
    original_max_position: int = 0  # positions before the context was stretched (llama3, yarn, longrope)
    attention_factor: float = 1.0  # multiplies cos and sin (yarn, longrope)
    low_freq_factor: float = 1.0  # llama3
    high_freq_factor: float = 4.0  # llama3
    beta_fast: float = 32.0  # yarn
    beta_slow: float = 1.0  # yarn
    is_range_truncated: bool = True  # yarn: the ramp's ends are whole dimensions
    short_factor: tuple[float, ...] = ()  # longrope
    long_factor: tuple[float, ...] = ()  # longrope


@dataclass(frozen=True, slots=True)
class DecoderSpec:
    """A decoder with RMS norms before attention and MLP, rotary positions, grouped queries and a gated MLP."""

    family: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    norm_eps: float
    rope: RopeSpec
    length: Length
    eos_ids: tuple[int, ...]
    activation: str = "silu"  # silu, gelu, gelu_tanh or relu
    windows: tuple[int | None, ...] = ()  # per layer: how many tokens a query sees, itself included; None = all
    has_qkv_bias: bool = False
    has_o_bias: bool = False
    has_mlp_bias: bool = False
    has_qk_norm: bool = False  # RMS norm over each head of queries and keys, before rotation
    is_head_tied: bool = False  # the output head is the embedding
    embedding_scale: float = 1.0
    residual_scale: float = 1.0  # multiplies what attention and MLP add to the residual
    attention_scale: float = 0.0  # multiplies query-key products
    logits_scale: float = 1.0  # multiplies logits
    dtype: str | None = None  # what the config names, if it does
    warnings: tuple[str, ...] = ()  # of reading the files

    @property
    def num_kv_groups(self) -> int:
        """Query heads per KV head."""
        return self.num_heads // self.num_kv_heads
