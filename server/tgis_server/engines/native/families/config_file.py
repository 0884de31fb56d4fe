"""Reading a model's config.json: typed values, and one clear sentence for everything that is missing or unsupported."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tgis_server import failures
from tgis_server.errors import TgisError
from tgis_server.model_files import read_json as read_json

ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}
DTYPES = ("float32", "bfloat16", "float16")
NULL_IS_A_VALUE = ("sliding_window", "num_key_value_heads", "eos_token_id")


class ConfigFile:
    """The values of one config.json. A key that it leaves out has the default of the model's class in transformers.

    A null counts as left out, but for keys where it is a value: the class of a Mistral has a window, null means none.
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
        if not file.exists():
            raise failures.NO_CONFIG.error(model_dir=model_dir)
        return cls(model_dir, read_json(file))

    def with_defaults(self, defaults: Mapping[str, Any]) -> ConfigFile:
        """The same config, of a family with these defaults: the keys that it may read."""
        return ConfigFile(self.model_dir, self._values, defaults)

    def stated(self, key: str) -> Any:
        """What the file says; ``None`` where it does not."""
        return self._values.get(key)

    def has(self, key: str) -> bool:
        return key in self._values

    def get(self, key: str) -> Any:
        return self._values[key] if key in self._values else self._defaults[key]

    def fail(self, text: str, file: str = "config.json") -> TgisError:
        return failures.CONFIG_NOT_SUPPORTED.error(file=self.model_dir / file, problem=text)

    def integer(self, key: str) -> int:
        """A positive integer."""
        value = self.get(key)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise self.fail(f"{key} is {value!r}, but must be a positive integer.")
        return value

    def optional_integer(self, key: str) -> int | None:
        return None if self.get(key) is None else self.integer(key)

    def number(self, key: str) -> float:
        value = self.get(key)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.fail(f"{key} is {value!r}, but must be a number.")
        return float(value)

    def flag(self, key: str) -> bool:
        value = self.get(key)
        if not isinstance(value, bool):
            raise self.fail(f"{key} is {value!r}, but must be true or false.")
        return value

    def activation(self) -> str:
        name = self.get("hidden_act")
        if name not in ACTIVATIONS:
            raise self.fail(f"hidden_act {name!r} is not supported; supported are {', '.join(ACTIVATIONS)}.")
        return ACTIVATIONS[name]

    def dtype(self) -> str | None:
        raw = self.get("dtype") or self.get("torch_dtype")
        if raw is None or raw == "auto":
            return None
        name = str(raw).removeprefix("torch.")
        if name not in DTYPES:
            raise self.fail(f"dtype {name!r} is not supported; supported are {', '.join(DTYPES)}.")
        return name

    def refuse(self, keys: Iterable[str]) -> None:
        """Stop at features that would change results and that no family here implements."""
        for key in keys:
            if self.stated(key):
                raise self.fail(f"{key} = {self.stated(key)!r} is not supported by the native engine.")
