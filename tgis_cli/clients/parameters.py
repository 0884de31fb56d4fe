"""The parameters of a generation request as people give them: on a command line, in JSON lines, in a prompt loop.

Each is declared once, with its range; the ranges are those that the server checks. A value that no server accepts is a
``UsageError`` before anything is sent. The limits of a model are checked by its server. Protobuf is imported on first
use.
"""

from __future__ import annotations

import dataclasses
import json
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

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

if TYPE_CHECKING:
    from tgis_server.wire import generation_pb2 as pb

LENGTH_FOR_PEOPLE = 256  # tokens of an answer on a terminal, unless another number is given
MAX_SHOWN = 50  # characters of a wrong value in an error
YES, NO = ("on", "true", "yes", "1"), ("off", "false", "no", "0")

LENGTH, SAMPLING, PENALTIES, TOKENS = "Length and end", "Sampling", "Penalties", "Tokens and probabilities"


class Server(Protocol):
    """What can be asked for a model's limits, such as a ``Client``."""

    def model_info(self) -> pb.ModelInfoResponse: ...


@dataclass(frozen=True, slots=True)
class Parameter:
    """How one parameter is written, and what it accepts."""

    name: str  # in JSON and in a prompt loop; the flag has dashes
    kind: type  # int, float, bool, or str for a list of texts
    panel: str  # of the help
    help: str
    accepts: Range | None = None  # None: not a number
    metavar: str = "N"
    has_negative: bool = False  # there is --no-NAME: without a flag the server decides

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")

    def parse(self, value: object, label: str) -> Any:
        """The value of a text or of JSON.

        Args:
            label: what the person wrote, such as ``--top-k``, for the error.

        Raises:
            UsageError: it is not in the range.
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
        Parameter("min_new_tokens", int, LENGTH, "Ignore end tokens and stop sequences before this many.", UINT32),
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
            "End the answer after this time, waiting for a free place included.",
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
        Parameter("top_p", float, SAMPLING, "Sample from this share of the probability, up to 1.", TOP_P, metavar="X"),
        Parameter(
            "typical_p", float, SAMPLING, "Sample from this share of typical tokens, up to 1.", TYPICAL_P, metavar="X"
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


@dataclass(frozen=True, slots=True)
class Parameters:
    """The parameters of one request; ``None`` = not given. All are within their ranges if they were parsed here."""

    max_new_tokens: int | None = None
    min_new_tokens: int | None = None
    stop: tuple[str, ...] | None = None
    include_stop_sequence: bool | None = None
    time_limit: float | None = None  # seconds
    truncate_input_tokens: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    typical_p: float | None = None
    seed: int | None = None
    repetition_penalty: float | None = None
    length_penalty: float | None = None
    length_penalty_start: int | None = None
    logprobs: bool | None = None
    top_n: int | None = None
    input_tokens: bool | None = None

    @classmethod
    def from_flags(cls, values: Mapping[str, Any]) -> Parameters:
        """From the texts of flags by name; ``None`` and empty lists are flags that were not given.

        Raises:
            UsageError: a value is out of range; it names the flag.
        """
        given = {name: value for name, value in values.items() if value is not None and value != []}
        parsed = {name: PARAMETERS[name].parse(value, PARAMETERS[name].flag) for name, value in given.items()}
        return cls(**parsed).checked(as_flags=True)

    def updated(self, values: Mapping[str, Any]) -> Parameters:
        """With the values of a JSON object or of ``/set``; ``None`` removes one. Dashes in names are accepted.

        Raises:
            UsageError: an unknown name, or a value that is out of range.
        """
        parsed = {}
        for given, value in values.items():
            parameter = find_parameter(given)
            parsed[parameter.name] = None if value is None else parameter.parse(value, parameter.name)
        return dataclasses.replace(self, **parsed).checked()

    def with_setting(self, name: str, text: str) -> Parameters:
        """With a value as it is typed after ``/set``; a stop sequence may be quoted as in JSON: ``"\\n"``.

        Raises:
            UsageError: an unknown name, or a value that is out of range.
        """
        value: object = text
        if find_parameter(name).kind is str and text[:1] in ('"', "["):
            try:
                value = json.loads(text)
            except ValueError as error:
                raise UsageError(f"{name} is {text}, which is not valid JSON ({error}).") from None
        return self.updated({name: value})

    def checked(self, *, as_flags: bool = False) -> Parameters:
        """These parameters, if they agree with each other.

        Raises:
            UsageError: they contradict each other.
        """

        def named(name: str) -> str:
            return PARAMETERS[name].flag if as_flags else name

        if self.max_new_tokens is not None and (self.min_new_tokens or 0) > self.max_new_tokens:
            raise UsageError(
                f"{named('min_new_tokens')} is {self.min_new_tokens}, but must be at most "
                f"{named('max_new_tokens')}, {self.max_new_tokens}."
            )
        if self.length_penalty_start is not None and self.length_penalty is None:
            raise UsageError(f"{named('length_penalty_start')} needs {named('length_penalty')} too.")
        return self

    def given(self) -> dict[str, Any]:
        """The parameters that are given, by name, in the order of the help."""
        return {name: value for name in PARAMETERS if (value := getattr(self, name)) is not None}

    def with_length_for_people(self, server: Server) -> Parameters:
        """With a length that suits a terminal, unless one is given: people read to the end of a text.

        Args:
            server: asked for its limit, only if that matters.
        """
        if self.max_new_tokens is not None:
            return self
        length = min(max(LENGTH_FOR_PEOPLE, self.min_new_tokens or 0), server.model_info().max_new_tokens)
        return dataclasses.replace(self, max_new_tokens=length).checked(as_flags=True)

    def check_default_length(self) -> None:
        """
        Raises:
            UsageError: the least number of tokens is above the length that the server will choose.
        """
        if self.max_new_tokens is None and (self.min_new_tokens or 0) > DEFAULT_MAX_NEW_TOKENS:
            raise UsageError(
                f"min_new_tokens is {self.min_new_tokens}, but max_new_tokens is {DEFAULT_MAX_NEW_TOKENS} unless "
                "given: give it too."
            )

    def with_seed(self, seed: int) -> Parameters:
        return dataclasses.replace(self, seed=seed)

    @property
    def is_sampling(self) -> bool:
        """Whether any sampling parameter is given; a temperature of 0 is greedy all the same."""
        return any(value is not None for value in (self.temperature, self.top_k, self.top_p, self.typical_p, self.seed))

    @property
    def wants_tokens(self) -> bool:
        """Whether facts about single tokens are asked for."""
        return bool(self.logprobs or self.top_n or self.input_tokens)

    def to_request(self, text: str) -> pb.SingleGenerationRequest:
        """A request for one answer. What is not given is left to the server."""
        from tgis_server.wire import generation_pb2 as pb

        return pb.SingleGenerationRequest(request=pb.GenerationRequest(text=text), params=self.to_proto())

    def to_proto(self) -> pb.Parameters:
        from tgis_server.wire import generation_pb2 as pb

        decoding = pb.DecodingParameters(repetition_penalty=self.repetition_penalty or 0)
        if self.length_penalty is not None:
            decoding.length_penalty.decay_factor = self.length_penalty
            decoding.length_penalty.start_index = self.length_penalty_start or 0
        stopping = pb.StoppingCriteria(
            max_new_tokens=self.max_new_tokens or 0,
            min_new_tokens=self.min_new_tokens or 0,
            time_limit_millis=max(1, round(self.time_limit * 1000)) if self.time_limit else 0,
            stop_sequences=self.stop or (),
        )
        if self.include_stop_sequence is not None:
            stopping.include_stop_sequence = self.include_stop_sequence
        shows_generated = bool(self.logprobs or self.top_n)
        return pb.Parameters(
            method=pb.SAMPLE if self.is_sampling else pb.GREEDY,
            sampling=pb.SamplingParameters(
                temperature=self.temperature,
                top_k=self.top_k or 0,
                top_p=self.top_p or 0,
                typical_p=self.typical_p or 0,
                seed=self.seed,
            ),
            stopping=stopping,
            response=pb.ResponseOptions(
                generated_tokens=shows_generated,
                input_tokens=bool(self.input_tokens),
                token_logprobs=self.wants_tokens,
                token_ranks=self.wants_tokens,
                top_n_tokens=self.top_n or 0,
            ),
            decoding=decoding,
            truncate_input_tokens=self.truncate_input_tokens or 0,
        )


def find_parameter(name: str) -> Parameter:
    """
    Raises:
        UsageError: there is none of this name.
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
    try:
        if kind is int:
            return None if isinstance(value, float) else int(value)
        return float(value)
    except (ValueError, OverflowError):
        return None


def to_float32(number: float) -> float:
    """What the wire makes of it: a tiny number becomes 0, a huge one infinity. Integers stay as they are."""
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
    """From a text, or a list of texts."""
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, Sequence) or not all(isinstance(text, str) for text in texts):
        raise UsageError(f"{label} is {show(value)}, but must be a text or a list of texts.")
    if len(texts) not in NUM_STOP_SEQUENCES:
        raise UsageError(f"{label} has {len(texts)} texts, but may have at most {NUM_STOP_SEQUENCES.high}.")
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
    """A value as it was written, shortened, and quoted if it could be misread."""
    text = value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)
    short = text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."
    is_plain = not isinstance(value, str) or (short and short.isprintable() and " " not in short)
    return escape_controls(short if is_plain else json.dumps(short, ensure_ascii=False))
