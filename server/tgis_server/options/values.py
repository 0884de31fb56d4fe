"""Parsing and checking the value of an option."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from tgis_server import failures
from tgis_server.errors import UsageError
from tgis_server.options.option import Option
from tgis_server.words.close_words import did_you_mean

FALSE_WORDS = frozenset({"n", "no", "f", "false", "off", "0"})


class OutOfRange(ValueError):
    """A number outside its option's range; it is in ``args``."""


def parse_value(option: Option, raw: Any, source: str) -> Any:
    """Convert a raw value to the option's type and check its range.

    Raises:
        UsageError: the option does not accept the value; the text is the original's if the original has one.
    """
    try:
        return _convert(option, raw)
    except (ValueError, TypeError, OverflowError) as error:  # a config file may contain lists, dates or 1e400
        problem = failures.WRONG_OPTION.format(source=source, value=str(raw), accepted=describe_accepted(option))
        if isinstance(error, OutOfRange) and option.opt.refusal:
            problem = f"{option.opt.refusal.format(*error.args)}. {source} is {str(raw)!r}."
        if hint := did_you_mean(str(raw), (*option.opt.choices, *(option.opt.aliases or {}))):
            problem += f" {hint}"
        if str(raw).startswith("tcp://"):
            problem += (
                " Kubernetes sets this variable if there is a Service with a matching name. Set the variable in the "
                f"pod, set enableServiceLinks: false, or pass {option.flag}."
            )
        raise UsageError(problem) from None


def _convert(option: Option, raw: Any) -> Any:
    opt = option.opt
    if option.type is bool:
        return _convert_bool(option, raw)
    if opt.unit == "bytes":
        value: Any = parse_bytes(raw)
    elif option.type in (int, float):
        if isinstance(raw, bool):
            raise ValueError
        value = option.type(raw)
        if isinstance(raw, float) and value != raw:
            raise ValueError  # 1.5 for an integer option in a config file
    else:
        value = option.type(raw)
    if opt.choices:
        value = opt.read(value.lower()) if opt.read else value.lower()
        value = (opt.aliases or {}).get(value, value)
        if value not in opt.choices:
            raise ValueError
    if isinstance(value, int | float):
        in_range = (
            math.isfinite(value)
            and (opt.ge is None or value >= opt.ge)
            and (opt.gt is None or value > opt.gt)
            and (opt.le is None or value <= opt.le)
        )
        if not in_range:
            raise OutOfRange(value)
    return value


def _convert_bool(option: Option, raw: Any) -> bool:
    """Apply the original's rule: false words are false, all others are true. Options that take a value are strict."""
    if isinstance(raw, bool):
        return raw
    word = str(raw).lower()
    if option.opt.takes_value:
        if word not in ("true", "false"):
            raise ValueError
        return word == "true"
    return word not in FALSE_WORDS


def parse_bytes(raw: Any) -> int:
    """Parse ``2GiB``, ``512MB``, ``1.5g`` or a plain number of bytes."""
    text = str(raw).strip().lower().replace(" ", "")
    number = text.rstrip("abcdefghijklmnopqrstuvwxyz")
    powers = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}
    unit = text[len(number) :]
    base = 1000 if unit in ("kb", "mb", "gb", "tb") else 1024
    prefix = unit.removesuffix("b").removesuffix("i")
    if prefix not in powers:
        raise ValueError(raw)
    return int(float(number) * base ** powers[prefix])


def describe_accepted(option: Option) -> str:
    """What an option accepts, in words, for errors, ``--help`` and the docs."""
    opt = option.opt
    if opt.choices:
        also = f" (also {', '.join(opt.aliases)})" if opt.aliases else ""
        return "one of " + ", ".join(opt.choices) + also
    if option.type is bool:
        return "true or false"
    if opt.unit == "bytes":
        return "a size such as 512MiB or 2GiB" if opt.le is None else f"a size such as 512KiB, at most {opt.le:,} bytes"
    noun = {int: "an integer", float: "a number", str: "text", Path: "a path"}[option.type]
    low, high = (f"{x:g}" if x is not None else "" for x in (opt.ge if opt.ge is not None else opt.gt, opt.le))
    if low and high:
        return f"{noun} above {low} up to {high}" if opt.gt is not None else f"{noun} from {low} to {high}"
    return f"{noun} {'above' if opt.gt is not None else 'of at least'} {low}" if low else noun
