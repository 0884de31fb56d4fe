"""Reading a model's config.json: typed values, and one clear sentence for everything that is missing or unsupported."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tgis_server import failures
from tgis_server.errors import TgisError
from tgis_server.regular_file import read_regular

ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}
DTYPES = ("float32", "bfloat16", "float16")


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object from a file of the model directory."""
    try:
        values = json.loads(read_regular(file).decode())
    except OSError as error:
        raise failures.JSON_UNREADABLE.error(file=file, reason=error.strerror) from error
    except ValueError as error:
        raise failures.JSON_BROKEN.error(file=file, reason=error) from error
    if not isinstance(values, dict):
        raise failures.JSON_NO_OBJECT.error(file=file, found=type(values).__name__)
    return values


class ConfigFile:
    """The values of one config.json. A key that is null counts as absent, as it does in transformers."""

    def __init__(self, model_dir: Path, values: dict[str, Any]) -> None:
        self.model_dir = model_dir
        self._values = {key: value for key, value in values.items() if value is not None}

    @classmethod
    def read(cls, model_dir: Path) -> ConfigFile:
        if not model_dir.is_dir():
            raise failures.NOT_A_DIRECTORY.error(model_dir=model_dir)
        file = model_dir / "config.json"
        if not file.exists():
            raise failures.NO_CONFIG.error(model_dir=model_dir)
        return cls(model_dir, read_json(file))

    def get(self, key: str, default: Any = None) -> Any:
        return self._values.get(key, default)

    def with_default(self, key: str, value: Any) -> ConfigFile:
        """The same config with a family's default for ``key``."""
        return ConfigFile(self.model_dir, {key: value, **self._values})

    def fail(self, text: str) -> TgisError:
        return failures.CONFIG_NOT_SUPPORTED.error(file=self.model_dir / "config.json", problem=text)

    def integer(self, key: str, default: int | None = None) -> int:
        """A positive integer."""
        value = self.get(key, default)
        if value is None:
            raise self.fail(f"{key} is missing; the download may be incomplete.")
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise self.fail(f"{key} is {value!r}, but must be a positive integer.")
        return value

    def number(self, key: str, default: float) -> float:
        value = self.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.fail(f"{key} is {value!r}, but must be a number.")
        return float(value)

    def flag(self, key: str, *, default: bool = False) -> bool:
        value = self.get(key, default)
        if not isinstance(value, bool):
            raise self.fail(f"{key} is {value!r}, but must be true or false.")
        return value

    def activation(self, default: str = "silu") -> str:
        name = self.get("hidden_act", default)
        if name not in ACTIVATIONS:
            raise self.fail(f"hidden_act {name!r} is not supported; supported are {', '.join(ACTIVATIONS)}.")
        return ACTIVATIONS[name]

    def dtype(self) -> str | None:
        raw = self.get("dtype", self.get("torch_dtype"))
        if raw is None or raw == "auto":
            return None
        name = str(raw).removeprefix("torch.")
        if name not in DTYPES:
            raise self.fail(f"dtype {name!r} is not supported; supported are {', '.join(DTYPES)}.")
        return name

    def refuse(self, keys: Iterable[str]) -> None:
        """Stop at features that would change results and that no family here implements."""
        for key in keys:
            if self.get(key):
                raise self.fail(f"{key} = {self.get(key)!r} is not supported by the native engine.")


def read_eos_ids(config: ConfigFile) -> tuple[int, ...]:
    """End-of-sequence ids: of generation_config.json, else of config.json, else the tokenizer's; none is possible."""
    file = config.model_dir / "generation_config.json"
    raw = read_json(file).get("eos_token_id") if file.exists() else None
    raw = config.get("eos_token_id") if raw is None else raw
    if raw is None:
        return read_tokenizer_eos(config.model_dir)
    ids = raw if isinstance(raw, list) else [raw]
    if not all(isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in ids):
        raise config.fail(f"eos_token_id is {raw!r}, but must be a token id or a list of them.")
    return tuple(ids)


def read_tokenizer_eos(model_dir: Path) -> tuple[int, ...]:
    """The id of the token that tokenizer_config.json calls ``eos_token``."""
    settings, vocabulary = model_dir / "tokenizer_config.json", model_dir / "tokenizer.json"
    token = read_json(settings).get("eos_token") if settings.exists() else None
    if token is None or not vocabulary.exists():
        return ()
    text = token.get("content") if isinstance(token, dict) else token
    return tuple(added["id"] for added in read_json(vocabulary).get("added_tokens", []) if added["content"] == text)
