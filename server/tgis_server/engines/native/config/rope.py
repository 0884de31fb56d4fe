"""Rotary position parameters of a config.json, in the spelling of transformers 5 and in the older one.

Newer files have everything in ``rope_parameters``; older ones have ``rope_scaling`` next to ``rope_theta``.
"""

from __future__ import annotations

import math
from typing import Any

from tgis_server.engines.native.config.config_file import ConfigFile, as_finite, show
from tgis_server.engines.native.spec import RopeSpec

KINDS = ("default", "linear", "dynamic", "llama3", "yarn", "longrope")


def read_rope(
    config: ConfigFile,
    head_dim: int,
    *,
    aliases: dict[str, str] | None = None,
    may_be_partial: bool = False,
    partial_key: str = "partial_rotary_factor",
    theta_key: str = "rope_theta",
) -> RopeSpec:
    """Read the rotary embedding of a family.

    Args:
        config: the model's config.json.
        head_dim: size of a head.
        aliases: kinds that this family spells differently.
        may_be_partial: whether the family supports rotating only a leading part of each head.
        partial_key: the config's key for the rotated share of a head, read if the rope parameters do not give one.
        theta_key: the config's key for the base, read if the rope parameters do not give one.
    """
    values: Any = config.get("rope_scaling") or config.get("rope_parameters") or {}
    if not isinstance(values, dict):
        raise config.fail(f"the rope parameters are {show(values)}, but must be an object.")
    if any(isinstance(value, dict) for value in values.values()):
        raise config.fail("rope parameters that differ between types of layers are not supported by the native engine.")
    reader = _RopeReader(config, {key: value for key, value in values.items() if value is not None}, theta_key)
    kind = str(reader.values.get("rope_type", reader.values.get("type", "default")))
    kind = (aliases or {}).get(kind, kind)
    if kind not in KINDS:
        raise config.fail(f"rope type {show(kind)} is not supported; the supported types are {', '.join(KINDS)}.")
    partial = reader.number("partial_rotary_factor", config.number(partial_key))
    if partial != 1.0 and not may_be_partial:
        raise config.fail(f"partial_rotary_factor {partial:g} is not supported for this family; it must be 1.")
    rotary_dim = int(head_dim * partial)
    if rotary_dim < 2 or rotary_dim % 2 or rotary_dim > head_dim:
        raise config.fail(f"a head of {head_dim} dimensions cannot rotate {rotary_dim} of them.")
    max_position = config.integer("max_position_embeddings")
    original = config.optional_integer("original_max_position_embeddings")
    if original is None:
        original = reader.integer("original_max_position_embeddings", max_position)
    return reader.read(kind, rotary_dim, max_position, original)


def read_ropes_by_type(
    config: ConfigFile, head_dim: int, *, window_theta_key: str = "rope_theta"
) -> tuple[RopeSpec, RopeSpec]:
    """The ropes of layers with full and with sliding attention, for families in which they differ.

    In the newer spelling, ``rope_parameters`` has an object for each type of layer. In the older one, ``rope_scaling``
    is for full attention alone, and each type of layer has a key of its own for the base.
    """
    by_type: Any = config.stated("rope_parameters") or {}
    if not isinstance(by_type, dict) or any(not isinstance(value, dict | None) for value in by_type.values()):
        raise config.fail(f"rope_parameters is {show(by_type)}, but must be an object for each type of layer.")
    scaling = config.stated("rope_scaling") or {}
    if not isinstance(scaling, dict):
        raise config.fail(f"rope_scaling is {show(scaling)}, but must be an object.")
    full = config.with_values(rope_parameters={**(by_type.get("full_attention") or {}), **scaling}, rope_scaling=None)
    sliding = config.with_values(rope_parameters=by_type.get("sliding_attention"), rope_scaling=None)
    ropes = read_rope(full, head_dim), read_rope(sliding, head_dim, theta_key=window_theta_key)
    if unsupported := [rope.kind for rope in ropes if rope.kind == "longrope"]:
        raise config.fail(f"rope type {unsupported[0]} is not supported for this family.")
    return ropes


class _RopeReader:
    """Reads the rope parameters of one config."""

    def __init__(self, config: ConfigFile, values: dict[str, Any], theta_key: str) -> None:
        self.config = config
        self.values = values
        self.theta_key = theta_key

    def number(self, key: str, default: float | None = None) -> float:
        return self.config.check_number(f"{key} of the rope parameters", self.values.get(key, default))

    def positive(self, key: str, default: float | None = None) -> float:
        return self.config.check_positive(f"{key} of the rope parameters", self.values.get(key, default))

    def positive_or(self, key: str, default: float) -> float:
        """The default also replaces 0, as in transformers."""
        return self.positive(key) if self.values.get(key) else default

    def integer(self, key: str, default: int) -> int:
        return self.config.check_integer(f"{key} of the rope parameters", self.values.get(key, default))

    def factors(self, key: str, count: int) -> tuple[float, ...]:
        value = self.values.get(key)
        numbers = [as_finite(item) for item in value] if isinstance(value, list) else []
        found = tuple(number for number in numbers if number)  # they are divisors
        if not len(found) == len(numbers) == count:
            raise self.config.fail(f"{key} of the rope parameters must be a list of {count} numbers other than 0.")
        return found

    def read(self, kind: str, rotary_dim: int, max_position: int, original: int) -> RopeSpec:
        theta = self.positive("rope_theta", self.config.positive_number(self.theta_key))
        if theta <= 1:  # wavelengths would not grow, and YaRN divides by log(theta)
            raise self.config.fail(f"rope_theta is {theta:g}, but must be greater than 1.")
        match kind:
            case "linear" | "dynamic":
                if kind == "dynamic" and rotary_dim == 2:  # the exponent is d / (d - 2)
                    raise self.config.fail("dynamic scaling needs more than 2 rotated dimensions.")
                return RopeSpec(kind, theta, rotary_dim, self.positive("factor"), max_position, max_position)
            case "llama3":
                low, high = self.positive("low_freq_factor"), self.positive("high_freq_factor")
                if low >= high:
                    raise self.config.fail(f"low_freq_factor {low:g} must be less than high_freq_factor {high:g}.")
                return RopeSpec(
                    kind,
                    theta,
                    rotary_dim,
                    self.positive("factor"),
                    max_position,
                    original,
                    low_freq_factor=low,
                    high_freq_factor=high,
                )
            case "yarn":
                factor = self.positive("factor", max_position / original)
                return RopeSpec(
                    kind,
                    theta,
                    rotary_dim,
                    factor,
                    max_position,
                    original,
                    attention_factor=self._yarn_attention_factor(factor),
                    beta_fast=self.positive_or("beta_fast", 32.0),
                    beta_slow=self.positive_or("beta_slow", 1.0),
                    is_range_truncated=bool(self.values.get("truncate", True)),
                )
            case "longrope":
                factor = self.positive("factor", max_position / original)
                default = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 < original else 1.0
                return RopeSpec(
                    kind,
                    theta,
                    rotary_dim,
                    factor,
                    max_position,
                    original,
                    attention_factor=self.number("attention_factor", default),
                    short_factor=self.factors("short_factor", rotary_dim // 2),
                    long_factor=self.factors("long_factor", rotary_dim // 2),
                )
        return RopeSpec("default", theta, rotary_dim, 1.0, max_position, max_position)

    def _yarn_attention_factor(self, factor: float) -> float:
        """The temperature of YaRN (arXiv:2309.00071, section 3.4); a ratio if the config has DeepSeek's two keys."""
        if "attention_factor" in self.values:
            return self.number("attention_factor")
        log = math.log(factor) if factor > 1 else 0.0
        mscale, mscale_all_dim = self.number("mscale", 0.0), self.number("mscale_all_dim", 0.0)
        if mscale and mscale_all_dim:
            return (0.1 * mscale * log + 1.0) / (0.1 * mscale_all_dim * log + 1.0)
        return 0.1 * log + 1.0
