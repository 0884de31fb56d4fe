"""Parameters as users write them: the same ranges as the server's, and errors that name what was written."""

from __future__ import annotations

import math

import pytest

from tgis_cli.clients.parameter_table import PARAMETERS, as_flag
from tgis_cli.clients.parameters import Parameters
from tgis_server.errors import InvalidRequest, UsageError
from tgis_server.frontend.grpc_api.messages import parse_request
from tgis_server.frontend.validation import RequestLimits, validate
from tgis_server.wire import generation_pb2 as pb
from tgis_server.wire.parameter_ranges import Range

LIMITS = RequestLimits(max_sequence_length=2**32, max_new_tokens=2**32 - 1)
LENIENT = {("top_p", 0.0), ("typical_p", 0.0)}  # "not given" to a server; people have no reason to give it


def accepts(parameters: Parameters) -> bool:
    """Whether the server's own checks let the parameters pass."""
    request = parse_request(parameters.to_request("x"), ["x"])
    try:
        validate(request, LIMITS, default_include_stop=True)
    except InvalidRequest:
        return False
    return True


def edges(accepted: Range, kind: type) -> tuple[list[float], list[float]]:
    """Values at the ends of a range, inside and outside."""
    step = 1 if kind is int else 0.001
    low, high = accepted.low, accepted.high
    inside = [low + step if accepted.excludes_low else low, *([high] if high < math.inf else [])]
    outside = [low if accepted.excludes_low else low - step, *([high + step] if high < math.inf else [])]
    return inside + ([0] if accepted.has_zero else []), outside


NUMBERS = [parameter for parameter in PARAMETERS.values() if parameter.accepts is not None]
INSIDE = [(p.name, value) for p in NUMBERS for value in edges(p.accepts, p.kind)[0]]
OUTSIDE = [(p.name, value) for p in NUMBERS for value in edges(p.accepts, p.kind)[1]]
WITH = {"length_penalty_start": {"length_penalty": 2}, "min_new_tokens": {"max_new_tokens": 2**32 - 1}}


@pytest.mark.parametrize(("name", "value"), INSIDE)
def test_the_ends_of_each_range_are_accepted_here_and_by_the_server(name: str, value: float):
    parameters = Parameters().updated(WITH.get(name, {}) | {name: value})

    assert getattr(parameters, name) == value
    assert accepts(parameters)


@pytest.mark.parametrize(("name", "value"), OUTSIDE)
def test_values_outside_of_a_range_are_usage_errors_that_name_it(name: str, value: float):
    with pytest.raises(UsageError, match=f"^{name} is .*, but must be "):
        Parameters().updated({name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [case for case in OUTSIDE if case not in LENIENT and case[0] in ("temperature", "top_p", "typical_p", "top_n")]
    + [case for case in OUTSIDE if case[0] == "length_penalty"],
)
def test_values_that_are_refused_here_are_refused_by_the_server_too(name: str, value: float):
    try:
        request = Parameters(**{name: value}).to_request("x")
    except ValueError:  # a negative number in an unsigned field
        return

    with pytest.raises(InvalidRequest):
        validate(parse_request(request, ["x"]), LIMITS, default_include_stop=True)


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ({"temperature": "0.01"}, "--temperature is 0.01, but must be a number: 0 or at least 0.05."),
        ({"temperature": "nan"}, "--temperature is nan, but must be a number: 0 or at least 0.05."),
        ({"temperature": "1e39"}, "--temperature is 1e39, but must be a number: 0 or at least 0.05."),
        ({"top_p": "1e-50"}, "--top-p is 1e-50, but must be a number above 0 and at most 1."),  # 0 on the wire
        ({"top_k": "many"}, "--top-k is many, but must be an integer from 0 to 2147483647."),
        ({"max_new_tokens": "1.5"}, "--max-new-tokens is 1.5, but must be an integer from 1 to 4294967295."),
        ({"stop": ["x"] * 7}, "--stop has 7 strings, but may have at most 6."),
        ({"stop": [""]}, '--stop is "", but must have 1 to 240 bytes of UTF-8.'),
        ({"stop": ["x" * 241]}, f"--stop is {'x' * 50}..., but must have 1 to 240 bytes of UTF-8."),
        ({"stop": ["\udc80"]}, "--stop is not valid UTF-8: check it and the locale (LANG)."),
        (
            {"max_new_tokens": "2", "min_new_tokens": "3"},
            "--min-new-tokens is 3, but must be at most --max-new-tokens, 2.",
        ),
        ({"length_penalty_start": "3"}, "--length-penalty-start needs --length-penalty too."),
    ],
)
def test_an_error_of_the_command_line_names_the_flag(flags: dict[str, object], sentence: str):
    with pytest.raises(UsageError) as caught:
        Parameters.from_flags(flags)

    assert str(caught.value) == sentence


def test_all_flags_together_reach_the_request():
    parameters = Parameters.from_flags(
        {
            "max_new_tokens": "9",
            "min_new_tokens": "3",
            "stop": ["a", "b"],
            "include_stop_sequence": False,
            "time_limit": "1.5",
            "truncate_input_tokens": "7",
            "temperature": "0.5",
            "top_k": "4",
            "top_p": "0.25",
            "typical_p": "0.75",
            "seed": "18446744073709551615",
            "repetition_penalty": "1.25",
            "length_penalty": "2",
            "length_penalty_start": "5",
            "logprobs": None,
            "top_n": "2",
            "input_tokens": True,
        }
    )

    penalty = pb.DecodingParameters.LengthPenalty(start_index=5, decay_factor=2)
    assert parameters.to_request("x") == pb.SingleGenerationRequest(
        request=pb.GenerationRequest(text="x"),
        params=pb.Parameters(
            method=pb.SAMPLE,
            sampling=pb.SamplingParameters(temperature=0.5, top_k=4, top_p=0.25, typical_p=0.75, seed=2**64 - 1),
            stopping=pb.StoppingCriteria(
                max_new_tokens=9,
                min_new_tokens=3,
                time_limit_millis=1500,
                stop_sequences=["a", "b"],
                include_stop_sequence=False,
            ),
            response=pb.ResponseOptions(
                generated_tokens=True, input_tokens=True, token_logprobs=True, token_ranks=True, top_n_tokens=2
            ),
            decoding=pb.DecodingParameters(repetition_penalty=1.25, length_penalty=penalty),
            truncate_input_tokens=7,
        ),
    )


def test_without_parameters_everything_is_left_to_the_server():
    assert Parameters().to_request("x").params == pb.Parameters(
        method=pb.GREEDY,
        sampling=pb.SamplingParameters(),
        stopping=pb.StoppingCriteria(),
        response=pb.ResponseOptions(),
        decoding=pb.DecodingParameters(),
    )


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("temprature", "No such parameter: temprature; did you mean temperature?"),
        ("x", "No such parameter: x; there are max_new_tokens, min_new_tokens, "),
    ],
)
def test_an_unknown_name_gets_a_suggestion_or_the_list(name: str, sentence: str):
    with pytest.raises(UsageError) as caught:
        Parameters().updated({name: 1})

    assert str(caught.value).startswith(sentence)


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("top-k", "3", 3),
        ("stop", r'"\n"', ("\n",)),
        ("stop", '["a", "b"]', ("a", "b")),
        ("stop", "end of", ("end of",)),
        ("logprobs", "on", True),
        ("include_stop_sequence", "OFF", False),
    ],
)
def test_settings_are_typed_as_text(name: str, text: str, value: object):
    assert list(Parameters().with_setting(name, text).given().values()) == [value]


@pytest.mark.parametrize(("name", "text"), [("top_k", "1_0"), ("top_k", "\uff11"), ("temperature", "1_0.5")])
def test_spellings_that_only_python_accepts_are_not_numbers(name: str, text: str):
    with pytest.raises(UsageError, match=f"^{name} is "):
        Parameters().with_setting(name, text)


def test_a_setting_of_null_restores_the_default():
    assert Parameters(top_k=3, seed=4).updated({"top_k": None}) == Parameters(seed=4)


class FakeServer:
    def model_info(self) -> pb.ModelInfoResponse:
        return pb.ModelInfoResponse(max_new_tokens=100)


class NoServer:
    def model_info(self) -> pb.ModelInfoResponse:
        raise AssertionError("nothing depends on the limit")


def test_the_length_for_people_stays_below_the_limit_of_the_server():
    assert Parameters().with_length_for_people(FakeServer(), str).max_new_tokens == 100


def test_the_server_is_not_queried_if_a_length_is_given():
    assert Parameters(max_new_tokens=7).with_length_for_people(NoServer(), str).max_new_tokens == 7


def test_a_minimum_length_above_the_default_of_the_server_is_refused_before_anything_is_sent():
    with pytest.raises(UsageError, match="min_new_tokens is 21, but max_new_tokens defaults to 20"):
        Parameters(min_new_tokens=21).check_default_length(str)
    with pytest.raises(UsageError, match="--min-new-tokens is 21, but --max-new-tokens defaults to 20"):
        Parameters(min_new_tokens=21).check_default_length(as_flag)


def test_a_minimum_length_above_the_limit_of_the_server_is_named_as_the_user_wrote_it():
    with pytest.raises(UsageError, match=r"^--min-new-tokens is 101, but this server allows at most 100[.]$"):
        Parameters(min_new_tokens=101).with_length_for_people(FakeServer(), as_flag)
    with pytest.raises(UsageError, match=r"^min_new_tokens is 101"):
        Parameters(min_new_tokens=101).with_length_for_people(FakeServer(), str)
