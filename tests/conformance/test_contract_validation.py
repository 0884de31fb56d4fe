"""Which requests are refused, with which text, and which of several reasons is given."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest

from contract_api import KINDS, Api, Refusal, asked_of, exactly, parameters, reason, refusal_of, row
from contract_script import STRANGER
from contract_servers import ONE_SERVER, VARIANTS
from tgis_server.wire import generation_pb2 as pb

ASKED_OF = ONE_SERVER

NAN, INFINITY = math.nan, math.inf

TEMPERATURE = "temperature must be >= 0.05"
TOP_P = "top_p must be > 0.0 and <= 1.0"
TYPICAL_P = "typical_p must be <= 1.0"
TOP_K = "top_k must be strictly positive"
MAX_NEW = "max_new_tokens must be <= {limit}"
MIN_NEW = "min_new_tokens must be <= max_new_tokens"
REPETITION = "repetition_penalty must be > 0.0"
LENGTH = "length_penalty must be >= 1.0 and <= 10.0"
STOP = "can specify at most 6 non-empty stop sequences, each not more than 240 UTF8 bytes"
TOP_N = "top_n_tokens ({n}) must be <= 10"
DETAIL = "must request input and/or generated tokens to request extra token detail"
ADAPTER = "adapter_id supplied but no adapter store was configured"
PREFIX = "can't retrieve prompt prefix with id '{id}': prefix id \"{id}\" not found"
TOO_LONG = "input tokens ({n}) plus prefix length (0) must be < {longest}"
NO_ROOM = "input tokens ({n}) plus prefix length (0) plus min_new_tokens ({min}) must be <= {longest}"

ABOVE = "above"  # stands for one more than the server's max_new_tokens
FAR_ABOVE = "far above"  # and for two more


def resolved(api: Api, fields: dict[str, Any]) -> dict[str, Any]:
    limit = api.info.max_new_tokens
    known = {ABOVE: limit + 1, FAR_ABOVE: limit + 2}
    return {name: known.get(value, value) if isinstance(value, str) else value for name, value in fields.items()}


def case(name: str, text: str, **fields: Any) -> Any:
    return pytest.param(fields, text, id=f"validation-{name}")


REFUSED = [
    case("01-temperature-too-low", TEMPERATURE, temperature=0.04),
    case("01-temperature-tiny", TEMPERATURE, temperature=1e-30),
    case("01-temperature-negative", TEMPERATURE, temperature=-1.0),
    case("01-temperature-nan", TEMPERATURE, temperature=NAN),
    case("01-temperature-infinite", TEMPERATURE, temperature=INFINITY),
    case("01-temperature-minus-infinite", TEMPERATURE, temperature=-INFINITY),
    case("02-top_p-above-one", TOP_P, top_p=1.01),
    case("02-top_p-negative", TOP_P, top_p=-0.1),
    case("02-top_p-nan", TOP_P, top_p=NAN),
    case("02-top_p-infinite", TOP_P, top_p=INFINITY),
    case("02-top_p-minus-infinite", TOP_P, top_p=-INFINITY),
    case("03-typical_p-above-one", TYPICAL_P, typical_p=1.01),
    case("03-typical_p-nan", TYPICAL_P, typical_p=NAN),
    case("03-typical_p-infinite", TYPICAL_P, typical_p=INFINITY),
    case("03-typical_p-minus-infinite", TYPICAL_P, typical_p=-INFINITY),
    case("04-top_k-wraps-negative", TOP_K, top_k=2**31),
    case("04-top_k-highest", TOP_K, top_k=2**32 - 1),
    case("05-max_new_tokens-above-limit", MAX_NEW, max_new_tokens=ABOVE),
    case("05-max_new_tokens-highest", MAX_NEW, max_new_tokens=2**32 - 1),
    case("06-min_new_tokens-above-max", MIN_NEW, min_new_tokens=5, max_new_tokens=4),
    case("06-min_new_tokens-above-default-of-20", MIN_NEW, min_new_tokens=21),
    case("06-min_new_tokens-highest", MIN_NEW, min_new_tokens=2**32 - 1, max_new_tokens=4),
    case("07-repetition_penalty-negative", REPETITION, repetition_penalty=-1.0),
    case("07-repetition_penalty-nan", REPETITION, repetition_penalty=NAN),
    case("07-repetition_penalty-infinite", REPETITION, repetition_penalty=INFINITY),
    case("07-repetition_penalty-minus-infinite", REPETITION, repetition_penalty=-INFINITY),
    case("08-length_penalty-below-one", LENGTH, length_penalty=(0, 0.99)),
    case("08-length_penalty-above-ten", LENGTH, length_penalty=(0, 10.1)),
    case("08-length_penalty-present-without-factor", LENGTH, length_penalty=(5, 0.0)),
    case("08-length_penalty-nan", LENGTH, length_penalty=(0, NAN)),
    case("08-length_penalty-infinite", LENGTH, length_penalty=(0, INFINITY)),
    case("08-length_penalty-minus-infinite", LENGTH, length_penalty=(0, -INFINITY)),
    case("09-stop_sequences-seven", STOP, stop_sequences=list("abcdefg")),
    case("top_n_tokens-eleven", TOP_N.format(n=11), top_n_tokens=11, generated_tokens=True),
    case("top_n_tokens-highest", TOP_N.format(n=2**32 - 1), top_n_tokens=2**32 - 1, generated_tokens=True),
    case("10-logprobs-of-no-tokens", DETAIL, token_logprobs=True),
    case("10-ranks-of-no-tokens", DETAIL, token_ranks=True),
    case("10-top_n-of-no-tokens", DETAIL, top_n_tokens=1),
    case("10-details-of-echoed-text", DETAIL, token_logprobs=True, input_text=True),
    case("11-stop_sequence-empty", STOP, stop_sequences=[""]),
    case("11-stop_sequence-empty-behind-others", STOP, stop_sequences=["a", "b", ""]),
    case("11-stop_sequence-241-bytes", STOP, stop_sequences=["x" * 241]),
    case("11-stop_sequence-121-characters-of-two-bytes", STOP, stop_sequences=["é" * 121]),
    case("11-stop_sequence-61-characters-of-four-bytes", STOP, stop_sequences=["🦆" * 61]),
    case("12-prefix-unknown", PREFIX.format(id="nowhere"), prefix_id="nowhere"),
    case("12-prefix-present-but-empty", PREFIX.format(id=""), prefix_id=""),
    case("12-adapter-without-store", ADAPTER, adapter_id="nowhere"),
    case("12-adapter-wins-over-prefix", ADAPTER, adapter_id="nowhere", prefix_id="elsewhere"),
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("fields", "text"), REFUSED)
def test_a_parameter_out_of_range_is_refused(api: Api, kind: str, fields: dict[str, Any], text: str) -> None:
    refusal = api.refusal("Hello", kind=kind, **resolved(api, fields))

    assert refusal == Refusal.invalid(text.format(limit=api.info.max_new_tokens))


ACCEPTED = {
    "01-temperature-lowest": {"temperature": 0.05},
    "01-temperature-explicit-zero": {"temperature": 0.0},
    "01-temperature-high": {"temperature": 1e6},
    "02-top_p-one": {"top_p": 1.0},
    "02-top_p-zero-is-off": {"top_p": 0.0},
    "02-top_p-tiny": {"top_p": 1e-6},
    "03-typical_p-one": {"typical_p": 1.0},
    "03-typical_p-negative-is-off": {"typical_p": -0.5},
    "04-top_k-largest": {"top_k": 2**31 - 1},
    "06-min_new_tokens-equal-to-max": {"min_new_tokens": 1},
    "07-repetition_penalty-zero-is-off": {"repetition_penalty": 0.0},
    "07-repetition_penalty-below-one": {"repetition_penalty": 0.5},
    "07-repetition_penalty-without-upper-bound": {"repetition_penalty": 1000.0},
    "08-length_penalty-one": {"length_penalty": (0, 1.0)},
    "08-length_penalty-ten": {"length_penalty": (0, 10.0)},
    "09-stop_sequences-six": {"stop_sequences": list("uvwxyz")},
    "top_n_tokens-ten": {"top_n_tokens": 10, "generated_tokens": True},
    "10-details-of-generated-tokens": {"token_logprobs": True, "generated_tokens": True},
    "10-details-of-input-tokens": {"token_ranks": True, "input_tokens": True},
    "11-stop_sequence-240-bytes": {"stop_sequences": ["x" * 240]},
    "11-stop_sequence-120-characters-of-two-bytes": {"stop_sequences": ["é" * 120]},
    "11-stop_sequence-60-characters-of-four-bytes": {"stop_sequences": ["🦆" * 60]},
    "12-adapter-empty-is-none": {"adapter_id": ""},
    "model_id-is-ignored": {"model_id": "some/other-model"},
    "time_limit-longest": {"time_limit_millis": 2**32 - 1},
}


@pytest.mark.parametrize("fields", [pytest.param(fields, id=f"validation-{name}") for name, fields in ACCEPTED.items()])
def test_a_value_at_the_edge_of_its_range_is_accepted(api: Api, fields: dict[str, Any]) -> None:
    [answer] = api.generate("Hello", max_new_tokens=1, **fields)

    assert answer.generated_token_count == 1


@asked_of(*VARIANTS)
@row("validation-05-max_new_tokens-at-limit")
def test_as_many_tokens_as_the_server_allows_may_be_asked_for(api: Api) -> None:
    api.assert_accepts("Hello", max_new_tokens=api.info.max_new_tokens)


@pytest.mark.parametrize(
    "method",
    [pytest.param(pb.GREEDY, id="validation-greedy"), pytest.param(7, id="validation-unknown-method-is-greedy")],
)
def test_sampling_parameters_are_not_checked_without_the_method_sample(api: Api, method: int, usual: Any) -> None:
    nonsense = {"temperature": -1.0, "top_p": NAN, "typical_p": 7.0, "top_k": 2**32 - 1, "seed": 5}

    [answer] = api.generate("Hello", method=method, **nonsense, **usual)

    assert answer == api.answer("Hello", **usual)


# Each violates one rule. If several rules are violated, the error is that of the first one in this order.
ORDER: dict[str, tuple[dict[str, Any], str]] = {
    "01": ({"temperature": 0.01}, TEMPERATURE),
    "02": ({"top_p": 2.0}, TOP_P),
    "03": ({"typical_p": 2.0}, TYPICAL_P),
    "04": ({"top_k": 2**31}, TOP_K),
    "05": ({"max_new_tokens": ABOVE}, MAX_NEW),
    "06": ({"min_new_tokens": FAR_ABOVE}, MIN_NEW),
    "07": ({"repetition_penalty": -1.0}, REPETITION),
    "08": ({"length_penalty": (0, 11.0)}, LENGTH),
    "09": ({"stop_sequences": list("abcdefg")}, STOP),
    "10": ({"token_logprobs": True}, DETAIL),
    "11": ({"stop_sequences": ["x" * 241]}, STOP),
    "12": ({"prefix_id": "nowhere"}, PREFIX.format(id="nowhere")),
}
PAIRS = [pair for pair in itertools.combinations(ORDER, 2) if pair != ("09", "11")]  # one field cannot be both


@pytest.mark.parametrize(("first", "second"), PAIRS, ids=[f"order-{a}-before-{b}" for a, b in PAIRS])
def test_the_first_rule_that_fails_gives_the_text(api: Api, first: str, second: str) -> None:
    fields = resolved(api, ORDER[second][0] | ORDER[first][0])

    refusal = api.refusal("Hello", **fields)

    assert refusal == Refusal.invalid(ORDER[first][1].format(limit=api.info.max_new_tokens))


@pytest.mark.parametrize("first", [pytest.param(name, id=f"order-{name}-before-14") for name in ORDER])
def test_parameters_are_checked_before_lengths(api: Api, first: str, too_long: str) -> None:
    fields, text = ORDER[first]

    refusal = api.refusal(too_long, **resolved(api, fields))

    assert refusal == Refusal.invalid(text.format(limit=api.info.max_new_tokens))


@row("order-09-before-top_n")
def test_too_many_stop_sequences_are_noticed_before_too_many_alternatives(api: Api) -> None:
    assert api.refusal("Hello", stop_sequences=list("abcdefg"), top_n_tokens=11) == Refusal.invalid(STOP)


@row("order-top_n-before-10")
def test_too_many_alternatives_are_noticed_before_a_lack_of_tokens(api: Api) -> None:
    assert api.refusal("Hello", top_n_tokens=11) == Refusal.invalid(TOP_N.format(n=11))


@row("order-07-before-10-of-three")
def test_of_three_violations_the_first_counts(api: Api) -> None:
    fields = {"stop_sequences": [""], "token_ranks": True, "repetition_penalty": -2.0}

    assert api.refusal("Hello", **fields) == Refusal.invalid(REPETITION)


# Inputs for which the model has no tokens


@pytest.mark.parametrize("kind", KINDS)
@row("validation-13-token-unknown-to-the-model")
def test_an_input_with_a_token_that_the_model_lacks_is_refused(recital: Api, kind: str) -> None:
    refusal = recital.refusal(f"a{STRANGER}A", kind=kind)

    assert (refusal.code, refusal.text[:16]) == ("INVALID_ARGUMENT", "tokenizer error ")
    assert STRANGER in refusal.text


@row("validation-13-cut-off-by-truncation")
def test_a_token_that_truncation_removes_does_no_harm(recital: Api) -> None:
    assert recital.answer(f"{STRANGER}xA", truncate_input_tokens=3) == recital.answer("xA")


@row("order-12-before-13")
def test_a_missing_prefix_is_noticed_before_the_input_is_checked(recital: Api) -> None:
    assert recital.refusal(STRANGER, prefix_id="p") == Refusal.invalid(PREFIX.format(id="p"))


@row("order-13-before-14")
def test_tokenizing_fails_before_lengths_are_compared(recital: Api) -> None:
    assert recital.refusal("x" * 40, STRANGER).text.startswith("tokenizer error ")


# Calls with nothing to do


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({}, id="zero-inputs"),
        pytest.param({"temperature": -1.0, "max_new_tokens": 2**32 - 1}, id="zero-inputs-with-bad-parameters"),
        pytest.param({"prefix_id": "nowhere"}, id="zero-inputs-with-unknown-prefix"),
    ],
)
def test_a_call_without_inputs_has_no_answers_whatever_its_parameters(api: Api, fields: dict[str, Any]) -> None:
    assert api.generate(**fields) == []


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({}, id="missing-request"),
        pytest.param({"temperature": -1.0}, id="missing-request-before-01"),
        pytest.param({"max_new_tokens": 2**32 - 1}, id="missing-request-before-05"),
    ],
)
def test_a_stream_without_an_input_is_refused(api: Api, fields: dict[str, Any]) -> None:
    request = pb.SingleGenerationRequest(params=parameters(**fields))

    assert refusal_of(lambda: list(api.stub.GenerateStream(request))) == Refusal.invalid("missing request")


@row("request-present-but-empty")
def test_an_empty_input_is_an_input(api: Api, usual: Any) -> None:
    request = pb.SingleGenerationRequest(request=pb.GenerationRequest(), params=parameters(**usual))

    frames = list(api.stub.GenerateStream(request))

    assert frames[0].input_token_count == api.count_tokens("")


# Lengths


@pytest.fixture(scope="module")
def longest(api: Api) -> int:
    return api.info.max_sequence_length


@pytest.fixture(scope="module")
def too_long(api: Api, longest: int) -> str:
    """A text with as many tokens as input and output may have together."""
    return api.text_of(longest)


@pytest.mark.parametrize("kind", KINDS)
@row("validation-14-input-fills-the-context")
def test_an_input_that_leaves_no_room_is_refused(api: Api, kind: str, longest: int, too_long: str) -> None:
    text = TOO_LONG.format(n=longest, longest=longest)

    assert api.refusal(too_long, kind=kind, max_new_tokens=1) == Refusal.invalid(text)


@row("validation-14-counts-after-truncation")
def test_a_long_input_that_is_truncated_is_accepted(api: Api, too_long: str) -> None:
    [answer] = api.generate(too_long, truncate_input_tokens=5, max_new_tokens=1)

    assert answer.input_token_count == 5


@row("validation-14-truncated-too-little")
def test_truncation_to_the_whole_context_leaves_no_room(api: Api, longest: int, too_long: str) -> None:
    refusal = api.refusal(too_long + " a a a", truncate_input_tokens=longest)

    assert refusal == Refusal.invalid(TOO_LONG.format(n=longest, longest=longest))


@row("validation-15-min_new_tokens-beyond-the-context")
def test_an_input_must_leave_room_for_min_new_tokens(api: Api, longest: int, too_long: str) -> None:
    refusal = api.refusal(too_long, truncate_input_tokens=longest - 3, **exactly(4))

    assert refusal == Refusal.invalid(NO_ROOM.format(n=longest - 3, min=4, longest=longest))


@row("validation-15-min_new_tokens-fill-the-context")
def test_min_new_tokens_may_fill_the_context(recital: Api) -> None:
    longest = recital.info.max_sequence_length

    [answer] = recital.generate("C" * (longest - 5), **exactly(4))

    assert (answer.input_token_count, answer.generated_token_count) == (longest - 4, 4)


@row("order-14-before-15")
def test_a_lack_of_any_room_is_noticed_before_a_lack_of_room_for_min_new_tokens(
    api: Api, longest: int, too_long: str
) -> None:
    assert api.refusal(too_long, **exactly(4)) == Refusal.invalid(TOO_LONG.format(n=longest, longest=longest))


@row("batch-first-failing-input-decides")
def test_the_first_failing_input_of_a_batch_gives_the_text(api: Api, longest: int, too_long: str) -> None:
    longer = too_long + " a a"

    refusal = api.refusal("Hello", longer, too_long, "Hello")

    assert refusal == Refusal.invalid(TOO_LONG.format(n=api.count_tokens(longer), longest=longest))


@row("batch-first-failing-input-decides-across-rules")
def test_an_earlier_input_decides_even_if_it_violates_a_later_rule(api: Api, longest: int, too_long: str) -> None:
    nearly = api.text_of(longest - 2)

    refusal = api.refusal("Hello", nearly, too_long, **exactly(3))

    assert refusal == Refusal.invalid(NO_ROOM.format(n=longest - 2, min=3, longest=longest))


# Defaults


@row("default-max_new_tokens-20")
def test_twenty_tokens_are_generated_by_default(api: Api) -> None:
    [answer] = api.generate("Hello", min_new_tokens=20)

    assert (answer.generated_token_count, reason(answer)) == (20, "MAX_TOKENS")


@row("default-max_new_tokens-clamped-to-the-server")
def test_the_default_is_lowered_to_what_the_server_and_the_context_allow(recital: Api) -> None:
    [answer] = recital.generate("C")

    assert recital.info.max_new_tokens == 18
    assert (answer.generated_token_count, reason(answer)) == (17, "TOKEN_LIMIT")


@row("default-max_new_tokens-explicit-is-not-clamped")
def test_twenty_tokens_that_are_asked_for_are_refused_where_the_server_allows_fewer(recital: Api) -> None:
    assert recital.refusal("C", max_new_tokens=20) == Refusal.invalid("max_new_tokens must be <= 18")


@row("default-parameters-absent")
def test_a_request_without_parameters_is_greedy(api: Api) -> None:
    request = pb.BatchedGenerationRequest(requests=[pb.GenerationRequest(text="Hello")])

    [answer] = api.stub.Generate(request).responses

    assert answer == api.answer("Hello")
    assert (answer.seed, len(answer.tokens), len(answer.input_tokens)) == (0, 0, 0)


# Guided decoding: a server must refuse what it cannot do, and never ignore it.


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("fields", "name"),
    [
        pytest.param({"format": pb.DecodingParameters.JSON}, "format", id="guided-format-json"),
        pytest.param({"json_schema": '{"type": "object"}'}, "json_schema", id="guided-json_schema"),
        pytest.param({"regex": "[0-9]{3}"}, "regex", id="guided-regex"),
        pytest.param({"choice": ["yes", "no"]}, "choice", id="guided-choice"),
        pytest.param({"grammar": 'root ::= "yes"'}, "grammar", id="guided-grammar"),
    ],
)
def test_a_constraint_that_cannot_be_kept_is_refused_with_a_sentence(
    api: Api, kind: str, fields: dict[str, Any], name: str
) -> None:
    refusal = api.refusal("Hello", kind=kind, **fields)

    assert refusal.code == "INVALID_ARGUMENT"
    assert name in refusal.text
    assert len(refusal.text.split()) > 5


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({"choice": ["yes"]}, id="guided-choice-of-one"),
        pytest.param({"choice": []}, id="guided-choice-of-none"),
        pytest.param({"regex": "("}, id="guided-regex-broken"),
        pytest.param({"json_schema": "{"}, id="guided-json_schema-broken"),
        pytest.param({"format": 9}, id="guided-format-unknown"),
    ],
)
def test_a_constraint_that_makes_no_sense_is_the_clients_fault(api: Api, fields: dict[str, Any]) -> None:
    assert api.refusal("Hello", **fields).code == "INVALID_ARGUMENT"


@row("guided-format-text-is-no-constraint")
def test_the_format_text_constrains_nothing(api: Api, usual: Any) -> None:
    [answer] = api.generate("Hello", format=pb.DecodingParameters.TEXT, **usual)

    assert answer == api.answer("Hello", **usual)
