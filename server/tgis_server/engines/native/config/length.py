"""The longest sequence that a model is made for."""

from __future__ import annotations

from tgis_server.engines.native.config.config_file import ConfigFile
from tgis_server.engines.native.spec import RopeSpec
from tgis_server.model_files import LENGTH_KEYS, MAX_INTEGER, Length, find_length

CLASS_DEFAULT = "config.json names none: the default of the model's class"
STRETCHING = {"linear": "linear scaling", "dynamic": "dynamic scaling", "yarn": "YaRN"}


def read_length(config: ConfigFile, rope: RopeSpec | None, key: str = "max_position_embeddings") -> Length:
    """The config's positions, times the factor of a rope that stretches them.

    The model's class has a default for ``key``. With ``llama3`` and ``longrope``, the config states the stretched
    number; YaRN stretches the original one.

    Raises:
        ModelError: the product is less than 1 or too large for an integer field.
    """
    named = find_length({key: config.stated(key) for key in LENGTH_KEYS})
    length = named or Length(config.integer(key), CLASS_DEFAULT)
    if rope is None or rope.kind not in STRETCHING:
        return length
    positions = rope.original_max_position if rope.kind == "yarn" else length.num_tokens
    stretched = f"{positions} positions stretched by a factor of {rope.factor:g} ({STRETCHING[rope.kind]})"
    if not 1 <= positions * rope.factor <= MAX_INTEGER:
        raise config.fail(f"{stretched} do not give a valid length, which must be from 1 to {MAX_INTEGER}.")
    return Length(round(positions * rope.factor), f"{stretched}, as config.json says")


def read_table_length(config: ConfigFile, key: str) -> Length:
    """The number of learned positions, from ``key``: a hard limit."""
    reason = f"{key} of config.json" if config.has(key) else CLASS_DEFAULT
    return Length(config.integer(key), reason, is_limit=True)
