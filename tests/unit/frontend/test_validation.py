"""The contract's table of checks, row by row, and their order."""

from __future__ import annotations

import math
import tracemalloc

import pytest

from tgis_server.errors import InvalidRequest
from tgis_server.frontend import validation
from tgis_server.frontend.grpc_api.messages import parse_adapter, parse_request
from tgis_server.frontend.validation import RequestLimits, reject_adapter, validate_length
from tgis_server.wire import generation_pb2 as pb
from tgis_server.wire.messages import LengthPenalty, SamplingParams, Wanted

LIMITS = RequestLimits(max_sequence_length=100, max_new_tokens=50)
STOP_TEXT = "can specify at most 6 non-empty stop sequences, each not more than 240 UTF8 bytes"
NAN, INF = math.nan, math.inf


def validate(params: pb.Parameters, limits: RequestLimits = LIMITS, *, default_include_stop: bool = True, **ids: str):
    request = parse_request(pb.SingleGenerationRequest(params=params, **ids), ["x"])
    return validation.validate(request, limits, default_include_stop=default_include_stop)


def sampling(**values: object) -> pb.Parameters:
    return pb.Parameters(method=pb.SAMPLE, sampling=pb.SamplingParameters(**values))


def stopping(**values: object) -> pb.Parameters:
    return pb.Parameters(stopping=pb.StoppingCriteria(**values))


def decoding(**values: object) -> pb.Parameters:
    return pb.Parameters(decoding=pb.DecodingParameters(**values))


def length_penalty(factor: float, start: int = 0) -> pb.Parameters:
    return decoding(length_penalty=pb.DecodingParameters.LengthPenalty(start_index=start, decay_factor=factor))


def response(**values: object) -> pb.Parameters:
    return pb.Parameters(response=pb.ResponseOptions(**values))


REJECTED = [
    *((sampling(temperature=value), "temperature must be >= 0.05") for value in (0.049, -1.0, NAN, INF, -INF)),
    *((sampling(top_p=value), "top_p must be > 0.0 and <= 1.0") for value in (-0.1, 1.01, NAN, INF, -INF)),
    *((sampling(typical_p=value), "typical_p must be <= 1.0") for value in (1.01, NAN, INF, -INF)),
    (sampling(top_k=2**31), "top_k must be strictly positive"),
    (sampling(temperature=0.0, top_p=2.0), "top_p must be > 0.0 and <= 1.0"),  # greedy, but with the method SAMPLE
    (stopping(max_new_tokens=51), "max_new_tokens must be <= 50"),
    (stopping(min_new_tokens=21), "min_new_tokens must be <= max_new_tokens"),
    (stopping(max_new_tokens=5, min_new_tokens=6), "min_new_tokens must be <= max_new_tokens"),
    *((decoding(repetition_penalty=v), "repetition_penalty must be > 0.0") for v in (-1.0, NAN, INF, -INF)),
    *((length_penalty(v), "length_penalty must be >= 1.0 and <= 10.0") for v in (0.0, 0.99, 10.01, NAN, INF)),
    (stopping(stop_sequences=["x"] * 7), STOP_TEXT),
    (stopping(stop_sequences=["x", ""]), STOP_TEXT),
    (stopping(stop_sequences=["x" * 241]), STOP_TEXT),
    (stopping(stop_sequences=["é" * 121]), STOP_TEXT),
    (response(top_n_tokens=11, generated_tokens=True), "top_n_tokens (11) must be <= 10"),
    *(
        (response(**detail), "must request input and/or generated tokens to request extra token detail")
        for detail in ({"token_logprobs": True}, {"token_ranks": True}, {"top_n_tokens": 1})
    ),
]


@pytest.mark.parametrize(("params", "text"), REJECTED)
def test_a_bad_parameter_is_rejected_with_the_contracts_text(params, text):
    with pytest.raises(InvalidRequest) as raised:
        validate(params)

    assert str(raised.value) == text


@pytest.mark.parametrize(
    "params",
    [
        sampling(temperature=0.05),
        sampling(top_p=1.0, typical_p=-3.0, top_k=2**31 - 1),
        pb.Parameters(method=pb.GREEDY, sampling=pb.SamplingParameters(temperature=-1, top_p=5, typical_p=9)),
        stopping(max_new_tokens=50, min_new_tokens=50),
        stopping(stop_sequences=["é" * 120] * 6),
        decoding(repetition_penalty=100.0),
        length_penalty(1.0),
        length_penalty(10.0),
        response(top_n_tokens=10, input_tokens=True),
        decoding(format=pb.DecodingParameters.TEXT),
    ],
)
def test_a_parameter_at_its_limit_is_accepted(params):
    validate(params)


def test_checks_run_in_the_contracts_order():
    """A request that fails every check gets the texts one by one as its mistakes are fixed."""
    params = pb.Parameters(
        method=pb.SAMPLE,
        sampling=pb.SamplingParameters(temperature=-1, top_p=2, typical_p=2, top_k=2**31),
        stopping=pb.StoppingCriteria(max_new_tokens=51, min_new_tokens=60, stop_sequences=[""] * 7),
        decoding=pb.DecodingParameters(
            repetition_penalty=-1,
            length_penalty=pb.DecodingParameters.LengthPenalty(decay_factor=0.5),
            regex="a*",
        ),
        response=pb.ResponseOptions(token_ranks=True, top_n_tokens=11),
    )
    texts = []
    for message, field in [
        (params.sampling, "temperature"),
        (params.sampling, "top_p"),
        (params.sampling, "typical_p"),
        (params.sampling, "top_k"),
        (params.stopping, "max_new_tokens"),
        (params.stopping, "min_new_tokens"),
        (params.decoding, "repetition_penalty"),
        (params.decoding, "length_penalty"),
        (params.stopping, "stop_sequences"),
        (params.response, "top_n_tokens"),
        (params.response, "token_ranks"),
        (params.stopping, "stop_sequences"),
        (params.decoding, "regex"),
    ]:
        with pytest.raises(InvalidRequest) as raised:
            validate(params)
        texts.append(str(raised.value))
        message.ClearField(field)
        if len(texts) == 9:
            params.stopping.stop_sequences.append("")  # one sequence instead of seven, but an empty one

    assert texts == [
        "temperature must be >= 0.05",
        "top_p must be > 0.0 and <= 1.0",
        "typical_p must be <= 1.0",
        "top_k must be strictly positive",
        "max_new_tokens must be <= 50",
        "min_new_tokens must be <= max_new_tokens",
        "repetition_penalty must be > 0.0",
        "length_penalty must be >= 1.0 and <= 10.0",
        STOP_TEXT,
        "top_n_tokens (11) must be <= 10",
        "must request input and/or generated tokens to request extra token detail",
        STOP_TEXT,
        "guided decoding (regex) is not available on this server: leave out decoding.regex",
    ]


def test_the_default_is_greedy_decoding_of_twenty_tokens():
    params = validate(pb.Parameters())

    assert params.sampling == SamplingParams()
    assert (params.max_new_tokens, params.seed, params.time_limit_s) == (20, None, None)
    assert (params.stop, params.include_stop_sequence, params.wanted) == (None, True, Wanted())


def test_the_default_of_twenty_tokens_is_capped_at_the_servers_limit():
    assert validate(pb.Parameters(), RequestLimits(100, 7)).max_new_tokens == 7


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        (sampling(), SamplingParams(temperature=1.0)),
        (sampling(temperature=0.0, top_k=3, top_p=0.5), SamplingParams()),
        (sampling(temperature=0.5, top_k=3), SamplingParams(temperature=0.5, top_k=3)),
        (sampling(typical_p=-0.5), SamplingParams(temperature=1.0)),
        (sampling(typical_p=0.5, top_p=0.25), SamplingParams(temperature=1.0, typical_p=0.5, top_p=0.25)),
        (pb.Parameters(method=7, sampling=pb.SamplingParameters(temperature=0.5)), SamplingParams()),
        (length_penalty(2.0, 5), SamplingParams(length_penalty=LengthPenalty(5, 2.0))),
        (decoding(repetition_penalty=1.5), SamplingParams(repetition_penalty=1.5)),
        (stopping(min_new_tokens=3), SamplingParams(min_new_tokens=3)),
    ],
)
def test_decoding_parameters_are_converted_for_the_engine(params, expected):
    assert validate(params).sampling == expected


def test_an_explicit_seed_is_kept_even_if_it_is_zero():
    assert validate(sampling(seed=0)).seed == 0
    assert validate(sampling(seed=2**64 - 1)).seed == 2**64 - 1
    assert validate(sampling()).seed is None


def test_a_clients_choice_to_include_stop_sequences_overrides_the_servers():
    assert not validate(stopping(include_stop_sequence=False)).include_stop_sequence
    assert validate(stopping(include_stop_sequence=True), default_include_stop=False).include_stop_sequence
    assert not validate(pb.Parameters(), default_include_stop=False).include_stop_sequence


@pytest.mark.parametrize(
    "guided",
    [
        {"format": pb.DecodingParameters.JSON},
        {"json_schema": "{}"},
        {"regex": "a"},
        {"choice": pb.DecodingParameters.StringChoices(choices=["a", "b"])},
        {"grammar": "root ::= x"},
    ],
)
def test_guided_decoding_is_refused_by_name(guided):
    with pytest.raises(InvalidRequest, match=r"guided decoding \((\w+)\) is not available .* leave out decoding\.\1"):
        validate(decoding(**guided))


@pytest.mark.parametrize(
    ("ids", "text"),
    [
        ({"prefix_id": "tuned"}, "can't retrieve prompt prefix with id 'tuned': prefix id \"tuned\" not found"),
        ({"prefix_id": ""}, "can't retrieve prompt prefix with id '': prefix id \"\" not found"),
        ({"adapter_id": "lora"}, "adapter_id supplied but no adapter store was configured"),
        ({"adapter_id": "a", "prefix_id": "p"}, "adapter_id supplied but no adapter store was configured"),
    ],
)
def test_tuned_prompts_and_adapters_are_refused_as_unknown(ids, text):
    with pytest.raises(InvalidRequest) as raised:
        validate(pb.Parameters(), **ids)

    assert str(raised.value) == text


@pytest.mark.parametrize(
    "params",
    [
        stopping(stop_sequences=["x"] * 100_000),
        decoding(choice=pb.DecodingParameters.StringChoices(choices=["x"] * 100_000)),
    ],
    ids=["stop sequences", "choices"],
)
def test_too_many_strings_are_refused_unread(params):
    message = pb.SingleGenerationRequest(params=params)
    tracemalloc.start()
    try:
        with pytest.raises(InvalidRequest):
            validation.validate(parse_request(message, ["x"]), LIMITS, default_include_stop=True)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert peak < 100_000


def test_a_request_without_an_adapter_is_accepted():
    reject_adapter(parse_adapter(pb.BatchedGenerationRequest(adapter_id="")))


def test_an_input_that_fills_the_context_is_rejected():
    with pytest.raises(InvalidRequest) as raised:
        validate_length(100, validate(pb.Parameters()), LIMITS)

    assert str(raised.value) == "input tokens (100) plus prefix length (0) must be < 100"


def test_an_input_that_leaves_too_little_for_min_new_tokens_is_rejected():
    with pytest.raises(InvalidRequest) as raised:
        validate_length(95, validate(stopping(min_new_tokens=6)), LIMITS)

    assert str(raised.value) == "input tokens (95) plus prefix length (0) plus min_new_tokens (6) must be <= 100"


def test_the_context_limits_the_number_of_new_tokens():
    params = validate(stopping(max_new_tokens=30))

    assert [validate_length(n, params, LIMITS) for n in (1, 70, 71, 99)] == [30, 30, 29, 1]


def test_a_server_limit_that_leaves_nothing_for_an_input_is_lowered():
    assert RequestLimits.effective(max_sequence_length=100, max_new_tokens=100) == RequestLimits(100, 99)
    assert RequestLimits.effective(max_sequence_length=100, max_new_tokens=99) == RequestLimits(100, 99)
