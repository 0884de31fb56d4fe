"""The parameters of a generation request: how each is written, and which values it accepts.

Used by flags, JSON lines and prompt loops. The ranges are those that the server checks; a value that no server accepts
is a ``UsageError``.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tgis_server.errors import UsageError
from tgis_server.wire.parameter_ranges import (
    DECAY_FACTOR,
    DEFAULT_MAX_NEW_TOKENS,
    NUM_STOP_SEQUENCES,
    REPETITION_PENALTY,
    STOP_SEQUENCE_BYTES,
    TEMPERATURE,
    TOP_K,
    TOP_N_TOKENS,
    TOP_P,
    TYPICAL_P,
    UINT32,
    UINT64,
    Range,
)
from tgis_server.words.close_words import find_close, or_list
from tgis_server.words.control_characters import escape_controls

LENGTH_FOR_PEOPLE = 256  # tokens of an answer on a terminal, unless another number is given
MAX_SHOWN = 50  # characters of an invalid value in an error
YES, NO = ("on", "true", "yes", "1"), ("off", "false", "no", "0")

LENGTH, SAMPLING, PENALTIES, TOKENS = "Length and end", "Sampling", "Penalties", "Tokens and probabilities"


def as_flag(name: str) -> str:
    """How a parameter is written on a command line."""
    return "--" + name.replace("_", "-")


@dataclass(frozen=True, slots=True)
class Parameter:
    """How one parameter is written, and which values it accepts."""

    name: str  # in JSON and in a prompt loop; the flag has dashes
    kind: type  # int, float, bool, or str for a list of strings
    panel: str  # of the help
    help: str
    accepts: Range | None = None  # None: not a number
    metavar: str = "N"
    has_negative: bool = False  # --no-NAME exists; without either flag the server decides

    @property
    def flag(self) -> str:
        return as_flag(self.name)

    def parse(self, value: object, label: str) -> Any:
        """The value that a text or a JSON value stands for.

        Args:
            label: what the user wrote, such as ``--top-k``, for the error.

        Raises:
            UsageError: the value is out of range.
        """
        if self.kind is bool:
            return parse_switch(value, label)
        if self.kind is str:
            return parse_stop_sequences(value, label)
        assert self.accepts is not None, "a number has a range"
        number = to_number(value, self.kind)
        if number is None or number not in self.accepts or to_float32(number) not in self.accepts:
            noun = "an integer" if self.kind is int else "a number"
            colon = ":" if self.accepts.has_zero else ""
            raise UsageError(f"{label} is {show(value)}, but must be {noun}{colon} {self.accepts}.")
        return number


PARAMETERS: dict[str, Parameter] = {
    parameter.name: parameter
    for parameter in (
        Parameter(
            "max_new_tokens",
            int,
            LENGTH,
            f"Most tokens to generate. Default: {LENGTH_FOR_PEOPLE} on a terminal (less if the server allows less), "
            f"otherwise the server's {DEFAULT_MAX_NEW_TOKENS}.",
            Range(1, UINT32.high),
        ),
        Parameter(
            "min_new_tokens", int, LENGTH, "Ignore end tokens and stop sequences for the first N tokens.", UINT32
        ),
        Parameter(
            "stop",
            str,
            LENGTH,
            f"End at this text; repeat it for up to {NUM_STOP_SEQUENCES.high} texts.",
            metavar="TEXT",
        ),
        Parameter(
            "include_stop_sequence",
            bool,
            LENGTH,
            "Whether the answer includes the text of --stop. Default: the server's.",
            metavar="",
            has_negative=True,
        ),
        Parameter(
            "time_limit",
            float,
            LENGTH,
            "End the answer after this time, which includes waiting to be scheduled.",
            Range(0.001, UINT32.high // 1000),
            metavar="SECONDS",
        ),
        Parameter("truncate_input_tokens", int, LENGTH, "Keep only the last N tokens of the text.", UINT32),
        Parameter(
            "temperature",
            float,
            SAMPLING,
            f"Sample; above 1 is more random. 0 is greedy, otherwise at least {TEMPERATURE.low}.",
            TEMPERATURE,
            metavar="X",
        ),
        Parameter("top_k", int, SAMPLING, "Sample from the N likeliest tokens; 0: from all.", TOP_K),
        Parameter(
            "top_p",
            float,
            SAMPLING,
            "Sample from the likeliest tokens with this total probability, up to 1.",
            TOP_P,
            metavar="X",
        ),
        Parameter(
            "typical_p",
            float,
            SAMPLING,
            "Sample from the most typical tokens with this total probability, up to 1.",
            TYPICAL_P,
            metavar="X",
        ),
        Parameter("seed", int, SAMPLING, "Make sampling reproducible.", UINT64),
        Parameter(
            "repetition_penalty",
            float,
            PENALTIES,
            "Above 1: tokens that were in the text or answer become less likely.",
            REPETITION_PENALTY,
            metavar="X",
        ),
        Parameter(
            "length_penalty",
            float,
            PENALTIES,
            f"Make the end likelier with each token, by this factor, {DECAY_FACTOR}.",
            DECAY_FACTOR,
            metavar="X",
        ),
        Parameter("length_penalty_start", int, PENALTIES, "Apply --length-penalty after N tokens.", UINT32),
        Parameter("logprobs", bool, TOKENS, "Show how likely each token was.", metavar=""),
        Parameter(
            "top_n",
            int,
            TOKENS,
            f"Show the N likeliest tokens at each position, {TOP_N_TOKENS}.",
            TOP_N_TOKENS,
        ),
        Parameter("input_tokens", bool, TOKENS, "Show the tokens of the text too.", metavar=""),
    )
}


def find_parameter(name: str) -> Parameter:
    """
    Raises:
        UsageError: no parameter has this name.
    """
    known = PARAMETERS.get(name.replace("-", "_"))
    if known is None:
        close = find_close(name, PARAMETERS)
        hint = f"did you mean {or_list(close)}?" if close else f"there are {', '.join(PARAMETERS)}."
        raise UsageError(f"No such parameter: {name}; {hint}")
    return known


def to_number(value: object, kind: type) -> float | None:
    """An integer or, if ``kind`` is float, any number; ``None`` if the value is not one."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    if isinstance(value, str) and ("_" in value or not value.isascii()):  # spellings that only Python accepts
        return None
    try:
        if kind is int:
            return None if isinstance(value, float) else int(value)
        return float(value)
    except (ValueError, OverflowError):
        return None


def to_float32(number: float) -> float:
    """Convert a number as the wire does: a tiny one becomes 0, a huge one infinity. Integers stay as they are."""
    if isinstance(number, int):
        return number
    try:
        narrowed: float = struct.unpack("f", struct.pack("f", number))[0]
    except OverflowError:
        return math.inf
    return narrowed


def parse_switch(value: object, label: str) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in YES + NO:
        return value.lower() in YES
    raise UsageError(f"{label} is {show(value)}, but must be {YES[0]} or {NO[0]}.")


def parse_stop_sequences(value: object, label: str) -> tuple[str, ...]:
    """The stop sequences in one string or a list of strings."""
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, Sequence) or not all(isinstance(text, str) for text in texts):
        raise UsageError(f"{label} is {show(value)}, but must be a string or a list of strings.")
    if len(texts) not in NUM_STOP_SEQUENCES:
        raise UsageError(f"{label} has {len(texts)} strings, but may have at most {NUM_STOP_SEQUENCES.high}.")
    for text in texts:
        if len(text.encode(errors="replace")) not in STOP_SEQUENCE_BYTES:
            low, high = STOP_SEQUENCE_BYTES.low, STOP_SEQUENCE_BYTES.high
            raise UsageError(f"{label} is {show(text)}, but must have {low} to {high} bytes of UTF-8.")
        if not is_unicode(text):
            raise UsageError(f"{label} is not valid UTF-8: check it and the locale (LANG).")
    return tuple(texts)


def is_unicode(text: str) -> bool:
    """Whether protobuf can carry the text: arguments that are not UTF-8 have surrogates in them."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def show(value: object) -> str:
    """A value as written, but shortened, and quoted if it could be misread."""
    text = value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)
    short = text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."
    is_plain = not isinstance(value, str) or (short and short.isprintable() and " " not in short)
    return escape_controls(short if is_plain else json.dumps(short, ensure_ascii=False))
