"""The leader's loop, with a fake engine and without threads."""

from __future__ import annotations

from pathlib import Path

from driving import VOCAB_SIZE, submit
from tgis_server.engines.api import Capacity, RunnerCaps
from tgis_server.engines.fake import FakeRunner
from tgis_server.scheduler import Scheduler, SchedulerLimits, StepLoad
from tgis_server.shard.guides import Compiler, refuse_grammars
from tgis_server.shard.inbox import Inbox, Requests, SessionEnded
from tgis_server.shard.leader import Leader, warm_up_plans
from tgis_server.shard.plan_check import PlanCheck
from tgis_server.shard.servicer import OpenSession, Outbox
from tgis_server.shard.status import ShardStatus
from tgis_server.wire.endpoints import Endpoint
from tgis_server.wire.messages import Cancel, FinishReason, StepResult, Submit
from tgis_server.wire.plans import PlanPublisher


class Loop:
    """A leader that is stepped by hand."""

    def __init__(
        self, *, plan_ahead: bool = False, num_blocks: int = 32, compile_grammar: Compiler = refuse_grammars
    ) -> None:
        self.inbox, self.outbox, self.status = Inbox(), Outbox(), ShardStatus()
        self.scheduler = Scheduler(SchedulerLimits(num_blocks, 4, 8, 64))
        self.preemptions = 0
        caps = RunnerCaps(plan_ahead=plan_ahead)
        runner = FakeRunner(vocab_size=VOCAB_SIZE, capacity=Capacity(num_blocks, 4, 128), caps=caps)
        followers = PlanPublisher(Endpoint.unix(Path("none")), 0)
        self.leader = Leader(
            runner,
            self.scheduler,
            self.status,
            self.inbox,
            self.outbox,
            followers,
            is_alone=True,
            compile_grammar=compile_grammar,
        )

    def open(self) -> OpenSession:
        session = self.outbox.open()
        assert session is not None
        return session

    def generate(self, *requests: Submit) -> tuple[dict[int, list[int]], dict[int, tuple[str, str]]]:
        """Run requests to their end; return tokens and failures (status, text) by request."""
        session = self.open()
        self.inbox.put(Requests(session.number, list(requests)))
        tokens: dict[int, list[int]] = {request.request_id: [] for request in requests}
        failures: dict[int, tuple[str, str]] = {}
        open_ids = set(tokens)
        while open_ids:
            self.leader.step()
            for result in results_of(session):
                self.preemptions += result.stats.preemptions
                failures |= {failure.request_id: (failure.status, failure.text) for failure in result.failures}
                for request_id, token_id, reason in zip(
                    result.request_ids, result.token_ids, result.finish_reasons, strict=True
                ):
                    tokens[request_id].append(token_id)
                    if reason is not FinishReason.NOT_FINISHED:
                        open_ids.remove(request_id)
            open_ids -= failures.keys()
        return tokens, failures


def results_of(session: OpenSession) -> list[StepResult]:
    found = []
    while not session.results.empty():
        result = session.results.get()
        assert result is not None
        found.append(result)
    return found


def requests_in(session: OpenSession) -> set[int]:
    """Requests whose tokens, starts or failures a Session received."""
    return {
        request_id
        for result in results_of(session)
        for request_id in (*result.request_ids, *dict(result.started), *(f.request_id for f in result.failures))
    }


def test_the_late_end_of_a_session_does_not_affect_the_next_one():
    loop = Loop()
    first = loop.open()
    loop.outbox.close(first)
    second = loop.open()
    for message in (
        Requests(second.number, [submit(1)]),
        SessionEnded(first.number),
        Requests(first.number, [submit(2), Cancel(1)]),  # from a late reader
    ):
        loop.inbox.put(message)

    loop.leader.step()

    assert requests_in(second) == {1}


def test_a_new_session_starts_without_requests_of_the_previous_one():
    loop = Loop(plan_ahead=True)
    first = loop.open()
    loop.inbox.put(Requests(first.number, [submit(1, max_new_tokens=50)]))
    loop.leader.step()
    loop.outbox.close(first)
    second = loop.open()
    loop.inbox.put(Requests(second.number, [submit(2)]))

    loop.leader.step()
    loop.leader.step()

    assert requests_in(second) == {2}
    assert loop.scheduler.num_running == 1


def test_requests_followed_by_the_end_of_their_session_do_not_start():
    loop = Loop()
    first = loop.open()
    loop.inbox.put(Requests(first.number, [submit(1)]))
    loop.inbox.put(SessionEnded(first.number))

    loop.leader.step()

    assert loop.scheduler.is_idle


def test_a_step_planned_ahead_is_published_with_its_own_planning_time():
    loop = Loop(plan_ahead=True)
    session = loop.open()
    loop.inbox.put(Requests(session.number, [submit(1, max_new_tokens=9)]))
    loop.leader.step()
    planned = loop.leader._in_flight
    loop.leader.step()

    (result,) = results_of(session)

    assert planned is not None
    assert result.stats.plan_s == planned.plan_s


def test_health_reports_the_allowance_of_the_step_in_flight():
    loop = Loop(plan_ahead=True)
    loop.scheduler.times.observe(load_of_one_token(), 0.5)
    session = loop.open()
    loop.inbox.put(Requests(session.number, [submit(1, max_new_tokens=9)]))

    loop.leader.step()

    assert loop.status.health().allowance_s >= 5.0


def test_an_engine_with_rows_is_warmed_up_without_blocks():
    capacity = Capacity(num_blocks=0, block_size=0, max_sequence_length=64, max_rows=2, max_padded_tokens=128)
    runner = FakeRunner(vocab_size=VOCAB_SIZE, capacity=capacity, caps=RunnerCaps(memory="rows"))
    check = PlanCheck(capacity)

    for plan in warm_up_plans(8, capacity):
        check.apply(plan)
        runner.finish(runner.launch(plan), None)


def load_of_one_token() -> StepLoad:
    load = StepLoad()
    load.add(0, 1)
    return load
