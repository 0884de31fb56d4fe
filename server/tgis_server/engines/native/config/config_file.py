"""Typed values of a model's config.json, and one clear error for each value that is missing or unsupported."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tgis_server import failures
from tgis_server.engines.native.spec import Activation
from tgis_server.errors import TgisError
from tgis_server.model_files import MAX_INTEGER, read_json
from tgis_server.options import DTYPES

ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "relu2": "relu_squared",
}
MAX_SHOWN = 200  # characters of a value that an error shows
NULL_IS_A_VALUE = (
    "sliding_window",
    "num_key_value_heads",
    "eos_token_id",
    "attn_logit_softcapping",
    "final_logit_softcapping",
)
TIED = "tie_word_embeddings"
OUTER_KEYS = ("dtype", "torch_dtype", "eos_token_id", "quantization_config")  # also of the text, if it has none


class ConfigFile:
    """The values of one config.json. Omitted keys have the defaults of the model's class in transformers.

    A null counts as omitted, except for keys where it is a value: Mistral's class has a window by default, and null
    disables it.
    """

    def __init__(
        self, model_dir: Path, values: Mapping[str, Any], defaults: Mapping[str, Any] = MappingProxyType({})
    ) -> None:
        self.model_dir = model_dir
        self._values = {key: value for key, value in values.items() if value is not None or key in NULL_IS_A_VALUE}
        self._defaults = defaults

    @classmethod
    def read(cls, model_dir: Path) -> ConfigFile:
        if not model_dir.is_dir():
            raise failures.NOT_A_DIRECTORY.error(model_dir=model_dir)
        file = model_dir / "config.json"
        if not os.path.lexists(file):  # a dangling link is for read_json to report
            raise failures.NO_CONFIG.error(model_dir=model_dir)
        return cls(model_dir, read_json(file))

    def of_family(self, defaults: Mapping[str, Any], aliases: Mapping[str, str] = MappingProxyType({})) -> ConfigFile:
        """The same config with a family's defaults and spellings.

        Args:
            defaults: the keys that the family may read, with their default values.
            aliases: other spellings of some keys, which take precedence, as in transformers.
        """
        aliased = {ours: self._values[theirs] for theirs, ours in aliases.items() if theirs in self._values}
        return ConfigFile(self.model_dir, {**self._values, **aliased}, defaults)

    def with_values(self, **values: Any) -> ConfigFile:
        """The same config with other values for these keys."""
        return ConfigFile(self.model_dir, {**self._values, **values}, self._defaults)

    def of_text(self) -> ConfigFile:
        """The config of the part for text, in ``text_config``; what that lacks may be in the outer one.

        The outer one decides whether the head is tied, as in transformers.
        """
        text: dict[str, Any] = self._values["text_config"]
        outer = {key: self._values[key] for key in OUTER_KEYS if key in self._values}
        tied = {TIED: self._values[TIED]} if TIED in self._values else {}
        return ConfigFile(self.model_dir, {**outer, **text, **tied}, self._defaults)

    def without_null(self, key: str) -> ConfigFile:
        """The same config, in which a null counts as omitted."""
        values = {name: value for name, value in self._values.items() if name != key or value is not None}
        return ConfigFile(self.model_dir, values, self._defaults)

    def stated(self, key: str) -> Any:
        """The value in the file; ``None`` if the file has none."""
        return self._values.get(key)

    def has(self, key: str) -> bool:
        return key in self._values

    def get(self, key: str) -> Any:
        return self._values[key] if key in self._values else self._defaults[key]

    def fail(self, text: str, file: str = "config.json") -> TgisError:
        return failures.CONFIG_NOT_SUPPORTED.error(file=self.model_dir / file, problem=text)

    def integer(self, key: str, *, at_least: int = 1) -> int:
        return self.check_integer(key, self.get(key), at_least=at_least)

    def optional_integer(self, key: str) -> int | None:
        return None if self.get(key) is None else self.integer(key)

    def number(self, key: str) -> float:
        return self.check_number(key, self.get(key))

    def positive_number(self, key: str) -> float:
        return self.check_positive(key, self.get(key))

    def optional_positive_number(self, key: str) -> float | None:
        return None if self.get(key) is None else self.positive_number(key)

    def names(self, key: str) -> list[str] | None:
        """A list of strings; ``None`` if the file has none."""
        value = self.stated(key)
        if value is not None and not (isinstance(value, list) and all(isinstance(name, str) for name in value)):
            raise self.fail(f"{key} is {show(value)}, but must be a list of names.")
        return value

    def integers(self, key: str) -> list[int]:
        """A list of integers of at least 0."""
        value = self.get(key)
        if not isinstance(value, list):
            raise self.fail(f"{key} is {show(value)}, but must be a list of integers.")
        return [self.check_integer(f"{key}[{i}]", item, at_least=0) for i, item in enumerate(value)]

    def flag(self, key: str) -> bool:
        value = self.get(key)
        if not isinstance(value, bool):
            raise self.fail(f"{key} is {show(value)}, but must be true or false.")
        return value

    def activation(self, key: str) -> Activation:
        name = self.get(key)
        if not isinstance(name, str) or name not in ACTIVATIONS:
            raise self.fail(f"{key} {show(name)} is not supported; the supported values are {', '.join(ACTIVATIONS)}.")
        return ACTIVATIONS[name]

    def dtype(self) -> str | None:
        raw = self.get("dtype") or self.get("torch_dtype")
        if raw is None or raw == "auto":
            return None
        name = str(raw).removeprefix("torch.")
        if name not in DTYPES:
            raise self.fail(f"dtype {show(name)} is not supported; the supported values are {', '.join(DTYPES)}.")
        return name

    def refuse(self, keys: Iterable[str]) -> None:
        """Fail on features that would change results but are not implemented."""
        for key in keys:
            if self.stated(key):
                raise self.fail(f"{key} = {show(self.stated(key))} is not supported by the native engine.")

    def refuse_false(self, keys: Iterable[str]) -> None:
        """The same for features that are on by default and cannot be switched off."""
        for key in keys:
            if self.stated(key) is False:
                raise self.fail(f"{key} = False is not supported by the native engine.")

    # -- Values from elsewhere in the file, such as rope parameters ----------------------------------------------------

    def check_integer(self, name: str, value: Any, *, at_least: int = 1) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not at_least <= value <= MAX_INTEGER:
            kind = "a positive integer" if at_least == 1 else f"an integer of at least {at_least}"
            raise self.fail(f"{name} is {show(value)}, but must be {kind}.")
        return value

    def check_number(self, name: str, value: Any) -> float:
        """A finite number: Python's JSON parser also accepts NaN and Infinity."""
        if (number := as_finite(value)) is None:
            raise self.fail(f"{name} is {show(value)}, but must be a number.")
        return number

    def check_positive(self, name: str, value: Any) -> float:
        number = self.check_number(name, value)
        if number <= 0:
            raise self.fail(f"{name} is {number:g}, but must be greater than 0.")
        return number


def as_finite(value: Any) -> float | None:
    """A finite number as a float; ``None`` for everything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:  # an integer beyond the range of floats
        return None


def show(value: Any) -> str:
    """A value as an error quotes it, truncated."""
    try:
        text = repr(value)
    except ValueError:  # an integer of thousands of digits
        return "too large a number"
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}…"
