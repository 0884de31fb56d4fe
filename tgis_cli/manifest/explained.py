"""Values of an object with the reasons for them, which become comments in YAML and disappear in JSON."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

Object = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Explained:
    """A value of a mapping or an item of a list, with the comment that precedes it."""

    value: Any
    why: str


def unwrap(value: Any) -> Any:
    """The value without its own reason; the values inside it keep theirs."""
    return unwrap(value.value) if isinstance(value, Explained) else value


def strip(value: Any) -> Any:
    """The value alone, without reasons at any depth."""
    value = unwrap(value)
    match value:
        case dict():
            return {key: strip(each) for key, each in value.items()}
        case list() | tuple():
            return [strip(each) for each in value]
        case _:
            return value


def without_none(mapping: Object) -> Object:
    """The mapping without the fields that do not apply."""
    return {key: value for key, value in mapping.items() if value is not None}
