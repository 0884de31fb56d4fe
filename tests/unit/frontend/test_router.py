"""One reader passes results to outputs and never waits for a client."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from links import FakeLink, step
from test_output import answer_of
from test_output import output_of as make_output
from tgis_server.errors import PeerLost, Unavailable
from tgis_server.frontend.metrics import Metrics
from tgis_server.frontend.output import Output
from tgis_server.frontend.router import Router
from tgis_server.wire.messages import FinishReason, RequestFailure, TokenDetail, Wanted

GO_ON, MAX = FinishReason.NOT_FINISHED, FinishReason.MAX_TOKENS


def output_of(router: Router, **params: object) -> Output:
    """A new output with its own id."""
    return make_output(request_id=router.next_id(), **params)


def make_metrics() -> Metrics:
    return Metrics(max_sequence_length=100, max_new_tokens=50, max_batch_size=4)


def with_router(test: Callable[[Router, FakeLink], Awaitable[None]], clock: Callable[[], float] = lambda: 10.0) -> None:
    """Run a test's coroutine while a router reads."""

    async def run() -> None:
        link = FakeLink()
        router = Router(link, make_metrics(), clock=clock)
        reader = asyncio.create_task(router.run())
        await asyncio.sleep(0)  # lets the reader connect
        try:
            await test(router, link)
        finally:
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)

    asyncio.run(run())


async def settle() -> None:
    """Let the reader consume all results in the link."""
    for _ in range(20):
        await asyncio.sleep(0)


def test_results_reach_their_outputs():
    async def check(router: Router, link: FakeLink) -> None:
        one, two = output_of(router), output_of(router)
        with router.running([one, two]):
            link.give(step((1, 7, GO_ON), (2, 8, GO_ON)))
            link.give(step((2, 9, MAX), (1, 8, MAX)))
            await settle()

        assert (answer_of(one).text, answer_of(two).text) == (" t7 t8", " t8 t9")
        assert link.cancelled == []

    with_router(check)


def test_the_inputs_of_a_call_are_submitted_as_one_unit():
    async def check(router: Router, link: FakeLink) -> None:
        with router.running([output_of(router), output_of(router)]):
            pass

        assert (link.num_messages, [one.request_id for one in link.submitted]) == (1, [1, 2])

    with_router(check)


def test_unfinished_requests_are_cancelled_when_their_call_ends():
    async def check(router: Router, link: FakeLink) -> None:
        with router.running([output_of(router), output_of(router)]):
            link.give(step((1, 7, MAX)))
            await settle()

        assert (link.cancelled, router.num_running) == ([2], 0)

    with_router(check)


def test_a_stop_sequence_cancels_the_rest_of_its_generation():
    async def check(router: Router, link: FakeLink) -> None:
        output = output_of(router, stop_sequences=("t7",))
        with router.running([output]):
            link.give(step((1, 7, GO_ON)))
            await settle()
            cancelled_before_the_call_ended = list(link.cancelled)
            link.give(step((1, 8, GO_ON)))  # already in flight
            await settle()

        assert (cancelled_before_the_call_ended, link.cancelled) == ([1], [1])
        assert output.num_generated == 1

    with_router(check)


def test_details_and_start_times_are_passed_on():
    async def check(router: Router, link: FakeLink) -> None:
        output = output_of(router, wanted=Wanted(ranks=True, input_tokens=True, generated_tokens=True))
        with router.running([output]):
            link.give(
                step(
                    (1, 7, MAX),
                    details={0: TokenDetail(rank=4)},
                    prompt_details=[(1, [TokenDetail(rank=3)])],
                    started=[(1, 10.5)],
                )
            )
            await settle()

        answer = answer_of(output)
        assert ([t.rank for t in answer.tokens], [t.rank for t in answer.input_tokens]) == ([4], [0, 3])
        assert output.started_at == 10.5
        assert b"tgi_request_queue_duration_sum 0.5\n" in router._metrics.to_text()

    with_router(check)


def test_first_tokens_are_timed_from_submission_and_others_from_the_previous_token():
    now = [8.0]

    async def check(router: Router, link: FakeLink) -> None:
        with router.running([output_of(router), output_of(router), output_of(router)]):
            for now[0], columns in ((10.0, [1, 2]), (10.5, [1, 2, 3]), (12.5, [1, 3])):
                link.give(step(*((request_id, 7, GO_ON) for request_id in columns)))
                await settle()

        text = router._metrics.to_text().decode().splitlines()
        assert "tgi_time_to_first_token_duration_sum 6.5" in text
        assert "tgi_time_to_first_token_duration_count 3.0" in text
        assert "tgi_inter_token_duration_sum 5.0" in text
        assert "tgi_inter_token_duration_count 4.0" in text

    with_router(check, clock=lambda: now[0])


def test_a_failure_ends_its_own_request_only():
    async def check(router: Router, link: FakeLink) -> None:
        one, two = output_of(router), output_of(router)
        with router.running([one, two]):
            link.give(step((2, 7, MAX), failures=[RequestFailure(1, "RESOURCE_EXHAUSTED", "GPU out of memory")]))
            await settle()

        assert str(one.error) == "Request failed during generation: GPU out of memory"
        assert answer_of(two).text == " t7"

    with_router(check)


def test_an_output_that_cannot_decode_its_token_fails_alone():
    async def check(router: Router, link: FakeLink) -> None:
        broken, sound = output_of(router), output_of(router)
        broken._detokenizer = None  # any bug in detokenizing
        with router.running([broken, sound]):
            link.give(step((1, 7, GO_ON), (2, 7, MAX)))
            await settle()

        assert str(broken.error).startswith("Request failed during detokenization: ")
        assert answer_of(sound).text == " t7"
        assert link.cancelled == [1]

    with_router(check)


def test_results_of_unknown_requests_are_ignored():
    async def check(router: Router, link: FakeLink) -> None:
        link.give(step((99, 7, MAX), failures=[RequestFailure(98, "INTERNAL", "x")], started=[(97, 0.0)]))
        await settle()

    with_router(check)


def test_requests_of_a_broken_link_wait_for_the_cause_and_then_end():
    async def check(router: Router, link: FakeLink) -> None:
        before, meanwhile = output_of(router), output_of(router)
        with router.running([before]):
            link.break_down()
            await settle()
            with router.running([meanwhile]):
                assert (before.error, meanwhile.error) == (None, None)
                router.lose_engine("shard-0 was killed.")

        for output in (before, meanwhile):
            assert isinstance(output.error, Unavailable)
            assert "Could not connect to Text Generation server: shard-0 was killed." in str(output.error)
        with pytest.raises(Unavailable), router.running([output_of(router)]):
            pass

    with_router(check)


def test_the_reader_ends_with_the_loss_of_its_peer():
    async def run() -> None:
        link = FakeLink()
        link.break_down()
        with pytest.raises(PeerLost, match="closed its connection"):
            await Router(link, make_metrics()).run()

    asyncio.run(run())


def test_refusing_ends_open_requests_and_cancels_them_in_the_engine():
    async def check(router: Router, link: FakeLink) -> None:
        output = output_of(router)
        with router.running([output]):
            router.refuse(Unavailable("stopping"))

        assert (str(output.error), link.cancelled) == ("stopping", [1])

    with_router(check)
