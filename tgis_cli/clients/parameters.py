"""The parameters of one generation request, read from flags, JSON and settings, and put into a message.

``parameter_table.py`` says what each of them accepts; the limits of a model are checked by its server. Protobuf is
imported on first use.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from tgis_cli.clients.parameter_table import LENGTH_FOR_PEOPLE, PARAMETERS, as_flag, find_parameter
from tgis_server.errors import UsageError
from tgis_server.wire.parameter_ranges import DEFAULT_MAX_NEW_TOKENS

if TYPE_CHECKING:
    from tgis_server.wire import generation_pb2 as pb


class Server(Protocol):
    """Anything that reports a model's limits, such as a ``Client``."""

    def model_info(self) -> pb.ModelInfoResponse: ...


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
        """Parse flags, given by name; ``None`` and empty lists stand for flags that were not given.

        Raises:
            UsageError: a value is out of range; the message names the flag.
        """
        given = {name: value for name, value in values.items() if value is not None and value != []}
        parsed = {name: PARAMETERS[name].parse(value, PARAMETERS[name].flag) for name, value in given.items()}
        return cls(**parsed).checked(as_flag)

    def updated(self, values: Mapping[str, Any]) -> Parameters:
        """A copy with the values of a JSON object or of ``/set``; ``None`` unsets one. Dashes in names are accepted.

        Raises:
            UsageError: an unknown name, or a value that is out of range.
        """
        parsed = {}
        for given, value in values.items():
            parameter = find_parameter(given)
            parsed[parameter.name] = None if value is None else parameter.parse(value, parameter.name)
        return dataclasses.replace(self, **parsed).checked()

    def with_setting(self, name: str, text: str) -> Parameters:
        """A copy with a value as typed after ``/set``; a stop sequence may be quoted as in JSON: ``"\\n"``.

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

    def checked(self, setting: Callable[[str], str] = str) -> Parameters:
        """Return these parameters if they are consistent.

        Args:
            setting: gives the name under which the user sets a parameter; the same holds in the methods below.

        Raises:
            UsageError: they contradict each other.
        """
        if self.max_new_tokens is not None and (self.min_new_tokens or 0) > self.max_new_tokens:
            raise UsageError(
                f"{setting('min_new_tokens')} is {self.min_new_tokens}, but must be at most "
                f"{setting('max_new_tokens')}, {self.max_new_tokens}."
            )
        if self.length_penalty_start is not None and self.length_penalty is None:
            raise UsageError(f"{setting('length_penalty_start')} needs {setting('length_penalty')} too.")
        return self

    def given(self) -> dict[str, Any]:
        """The parameters that are given, by name, in the order of the help."""
        return {name: value for name in PARAMETERS if (value := getattr(self, name)) is not None}

    def with_length_for_people(self, server: Server, setting: Callable[[str], str]) -> Parameters:
        """A copy with a length that suits people, unless one is given: the server's default is only a few words.

        Args:
            server: its limit is fetched only if it matters.

        Raises:
            UsageError: ``min_new_tokens`` is above that limit.
        """
        if self.max_new_tokens is not None:
            return self
        least, limit = self.min_new_tokens or 0, server.model_info().max_new_tokens
        if least > limit:
            raise UsageError(f"{setting('min_new_tokens')} is {least}, but this server allows at most {limit}.")
        return dataclasses.replace(self, max_new_tokens=min(max(LENGTH_FOR_PEOPLE, least), limit))

    def check_default_length(self, setting: Callable[[str], str]) -> None:
        """
        Raises:
            UsageError: ``min_new_tokens`` is above the length that the server will choose.
        """
        if self.max_new_tokens is None and (self.min_new_tokens or 0) > DEFAULT_MAX_NEW_TOKENS:
            raise UsageError(
                f"{setting('min_new_tokens')} is {self.min_new_tokens}, but {setting('max_new_tokens')} "
                f"defaults to {DEFAULT_MAX_NEW_TOKENS}: give that too."
            )

    def with_seed(self, seed: int) -> Parameters:
        return dataclasses.replace(self, seed=seed)

    @property
    def is_sampling(self) -> bool:
        """Whether any sampling parameter is given; a temperature of 0 is greedy all the same."""
        return any(value is not None for value in (self.temperature, self.top_k, self.top_p, self.typical_p, self.seed))

    @property
    def wants_tokens(self) -> bool:
        """Whether token details are requested."""
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
