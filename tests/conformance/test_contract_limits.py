"""Deadlines, cancellation and overload: how a call ends if it is not completed."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from contract_api import KINDS, Api, Frame, Refusal, asked_of, batch_request, exactly, merged, reason, refusal_of, row
from contract_script import seed_for
from contract_servers import ONE_SERVER, VARIANTS
from tgis_server.wire import generation_pb2 as pb

ASKED_OF = ONE_SERVER

OVERLOADED = Refusal("RESOURCE_EXHAUSTED", "Model is overloaded")
LONG = exactly(200)  # four seconds of the slow server
LONGER = exactly(1000)  # twenty seconds
AT_ONCE_S = 2.0  # on a busy machine; otherwise the place is taken for much longer


# Time limits


@pytest.mark.parametrize("way", KINDS)
@row("time-limit-while-generating")
def test_a_time_limit_ends_the_output_where_it_is(slow: Api, way: str) -> None:
    answer = slow.answer("Hello", way, time_limit_millis=150, **LONG)

    assert reason(answer) == "TIME_LIMIT"
    assert 1 <= answer.generated_token_count <= 9


@asked_of(*VARIANTS)
@row("time-limit-any-model")
def test_the_served_model_keeps_the_time_limit(api: Api) -> None:
    limit = min(api.info.max_new_tokens, api.info.max_sequence_length - 10)

    answer = api.answer("Hello", time_limit_millis=40, **exactly(limit))

    assert reason(answer) == "TIME_LIMIT"
    assert 1 <= answer.generated_token_count < limit


@row("time-limit-keeps-seed-and-echo")
def test_an_output_cut_by_time_has_its_seed_and_echo(slow: Api) -> None:
    answer = slow.answer("Hello", time_limit_millis=100, seed=11, input_text=True, **LONG)

    assert answer.text.startswith("Hello")
    assert (reason(answer), answer.seed) == ("TIME_LIMIT", 11)


@row("time-limit-not-reached")
def test_a_time_limit_that_is_not_reached_changes_nothing(recital: Api) -> None:
    assert recital.answer("A", time_limit_millis=60_000) == recital.answer("A")


@row("time-limit-before-max-tokens")
def test_a_deadline_takes_precedence_over_the_limit_of_tokens(slow: Api) -> None:
    """The only token comes 20 ms after the request, when the deadline has already passed."""
    assert reason(slow.answer("Hello", time_limit_millis=15, max_new_tokens=1)) == "TIME_LIMIT"


@row("time-limit-before-stop-sequences")
def test_a_deadline_takes_precedence_over_a_stop_sequence(slow: Api) -> None:
    fields = {"stop_sequences": ["The"], "include_stop_sequence": False, "seed": seed_for("Hello", b"The")}
    assert reason(slow.answer("Hello", max_new_tokens=1, **fields)) == "STOP_SEQUENCE"

    answer = slow.answer("Hello", time_limit_millis=15, max_new_tokens=1, **fields)

    assert (reason(answer), answer.stop_sequence) == ("TIME_LIMIT", "")
    assert answer.text == "The" * answer.generated_token_count


@row("time-limit-on-an-idle-server")
def test_an_idle_server_generates_at_least_one_token(api: Api) -> None:
    text = " a" * 100_000

    counts = [
        api.answer(text, truncate_input_tokens=8, time_limit_millis=1, max_new_tokens=4).generated_token_count
        for _ in range(2)
    ]

    assert min(counts) >= 1


@pytest.mark.parametrize("way", KINDS)
@row("time-limit-while-queued")
def test_an_input_whose_time_ends_in_the_queue_keeps_its_echo_and_seed(slow: Api, way: str) -> None:
    fields = {"time_limit_millis": 50, "input_text": True, "seed": 12}

    with slow.running("occupies the only place", **LONG) as frames:
        next(frames), next(frames)
        answer = slow.answer("Hello", way, **fields, **LONG)

    assert answer == Frame(input_token_count=6, text="Hello", seed=12, stop_reason=pb.TIME_LIMIT)


@row("time-limit-while-queued-frames")
def test_a_stream_whose_time_ends_in_the_queue_has_a_first_and_a_last_frame(slow: Api) -> None:
    with slow.running("occupies the only place", **LONG) as frames:
        next(frames), next(frames)
        queued = slow.stream("Hello", time_limit_millis=50, seed=12, **LONG)

    assert queued == [Frame(input_token_count=6, seed=12), Frame(seed=12, stop_reason=pb.TIME_LIMIT)]


@row("time-limit-neighbours")
def test_a_batch_is_cut_input_by_input(slow: Api) -> None:
    """One runs at a time: the first is done before the deadline, the second is cut, and the third never runs."""
    answers = slow.generate("one", "two", "three", time_limit_millis=350, **exactly(10))

    assert [reason(answer) for answer in answers] == ["MAX_TOKENS", "TIME_LIMIT", "TIME_LIMIT"]
    assert answers[1].generated_token_count >= 1
    assert answers[2].generated_token_count == 0


# The client goes away


@row("cancel-frees-the-place-of-a-stream")
def test_the_place_of_a_cancelled_stream_is_free_at_once(slow: Api) -> None:
    with slow.running("occupies the only place", **LONGER) as frames:
        next(frames), next(frames)
    started_at = time.monotonic()

    slow.generate("Hello", max_new_tokens=1)

    assert time.monotonic() - started_at < AT_ONCE_S


@row("cancel-frees-the-place-of-a-unary-call")
def test_the_place_of_a_cancelled_unary_call_is_free_at_once(slow: Api) -> None:
    call = slow.stub.Generate.future(batch_request(["occupies the only place"], **LONGER))
    slow.wait_for_metric("tgi_batch_current_size", 1)
    call.cancel()
    started_at = time.monotonic()

    slow.generate("Hello", max_new_tokens=1)

    assert time.monotonic() - started_at < AT_ONCE_S


@row("cancel-while-queued")
def test_a_call_that_is_cancelled_in_the_queue_never_runs(slow: Api) -> None:
    with slow.running("occupies the only place", **LONG) as frames:
        next(frames), next(frames)
        with slow.running("waits", **LONG) as waiting:
            next(waiting)
            slow.wait_for_metric("tgi_queue_size", 1)
        slow.wait_for_metric("tgi_queue_size", 0)


@asked_of(*VARIANTS)
@row("cancel-any-model")
def test_the_served_model_stops_when_its_client_is_gone(api: Api) -> None:
    before = api.settled_metrics().get("tgi_request_failure", err="cancelled")
    limit = min(api.info.max_new_tokens, api.info.max_sequence_length - 10)

    with api.running("Hello", **exactly(limit)) as frames:
        next(frames), next(frames)

    api.wait_for_metric("tgi_request_failure", before + 1, err="cancelled")
    steps = api.settled_metrics().get("tgi_batch_inference_count", method="next_token")
    assert api.settled_metrics().get("tgi_batch_inference_count", method="next_token") == steps


@pytest.mark.parametrize("kind", KINDS)
@row("deadline-of-the-client")
def test_a_client_whose_deadline_passes_frees_its_place(slow: Api, kind: str) -> None:
    request = batch_request(["Hello"], **LONGER)
    call = {
        "unary": lambda: slow.stub.Generate(request, timeout=0.2),
        "stream": lambda: list(slow.open_stream("Hello", timeout=0.2, **LONGER)),
    }[kind]

    assert refusal_of(call).code == "DEADLINE_EXCEEDED"
    started_at = time.monotonic()
    slow.generate("Hello", max_new_tokens=1)
    assert time.monotonic() - started_at < AT_ONCE_S


# Overload: the slow server has three permits


@pytest.fixture
def full(slow: Api) -> Iterator[Api]:
    """All permits of the slow server are held."""
    slow.settled_metrics()
    with ExitStack() as stack:
        for _ in range(3):
            next(stack.enter_context(slow.running("holds a permit", **LONG)))
        yield slow


@pytest.mark.parametrize("kind", KINDS)
@row("overload-no-permit")
def test_a_call_without_a_permit_is_refused_at_once(full: Api, kind: str) -> None:
    started_at = time.monotonic()

    assert full.refusal("Hello", kind=kind) == OVERLOADED
    assert time.monotonic() - started_at < AT_ONCE_S


@row("overload-before-validation")
def test_overload_is_noticed_before_wrong_parameters(full: Api) -> None:
    assert full.refusal("Hello", temperature=-1.0) == OVERLOADED


@row("overload-before-missing-request")
def test_overload_is_noticed_before_a_missing_request(full: Api) -> None:
    call = full.stub.GenerateStream(pb.SingleGenerationRequest())

    assert refusal_of(lambda: list(call)) == OVERLOADED


@row("overload-zero-inputs")
def test_a_call_without_inputs_needs_no_permit(full: Api) -> None:
    assert full.generate() == []


@row("overload-tokenize")
def test_tokenizing_needs_no_permit(full: Api) -> None:
    assert full.count_tokens("abc") == 4


@row("overload-model-info")
def test_model_info_needs_no_permit(full: Api) -> None:
    assert full.stub.ModelInfo(pb.ModelInfoRequest(), timeout=5) == full.info


@row("overload-released-by-cancellation")
def test_a_cancelled_call_gives_its_permit_back(slow: Api) -> None:
    num_cancelled = slow.settled_metrics().get("tgi_request_failure", err="cancelled")
    with slow.running("holds a permit", **LONG) as frames, slow.running("holds a permit", **LONG) as others:
        next(frames), next(others)
        with slow.running("holds the last", **LONG) as last:
            next(last)
            assert slow.refusal("Hello") == OVERLOADED
        slow.wait_for_metric("tgi_request_failure", num_cancelled + 1, err="cancelled")
        slow.assert_accepts("Hello", **LONG)


@row("overload-batch-needs-a-permit-per-input")
def test_a_batch_is_refused_if_one_permit_is_missing(slow: Api) -> None:
    slow.settled_metrics()
    with slow.running("holds a permit", **LONG) as frames:
        next(frames)
        assert slow.refusal("a", "b", "c", max_new_tokens=1) == OVERLOADED


@row("overload-batch-as-large-as-the-permits")
def test_a_batch_may_take_all_permits(slow: Api) -> None:
    slow.settled_metrics()

    assert len(slow.generate("a", "b", "c", max_new_tokens=1)) == 3


@row("overload-batch-larger-than-the-permits")
def test_a_batch_of_more_inputs_than_permits_never_fits(slow: Api) -> None:
    slow.settled_metrics()

    assert slow.refusal("a", "b", "c", "d", max_new_tokens=1) == OVERLOADED


@row("overload-any-server")
def test_a_huge_batch_is_refused_before_it_is_examined(api: Api) -> None:
    """The parameters are wrong, so that a server with that many permits does not run the batch."""
    assert api.refusal(*[""] * 50_000, max_new_tokens=2**32 - 1) == OVERLOADED


@row("overload-permits-return-after-refusal")
def test_a_refused_call_keeps_no_permit(slow: Api) -> None:
    slow.settled_metrics()
    for _ in range(4):
        slow.refusal("Hello", temperature=-1.0)
        slow.refusal("x" * 5000)

    assert len(slow.generate("a", "b", "c", max_new_tokens=1)) == 3


@row("overload-queue-runs-later")
def test_calls_with_a_permit_wait_for_their_turn(slow: Api) -> None:
    slow.settled_metrics()
    streams = [slow.open_stream(text, **exactly(3)) for text in ("a", "b", "c")]

    answers = [merged(list(stream)) for stream in streams]

    assert [answer.generated_token_count for answer in answers] == [3] * 3
