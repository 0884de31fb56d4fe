"""The channels between leader and followers: connecting, waiting, and refusing malformed messages."""

from __future__ import annotations

import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tgis_server.engines.api import Capacity
from tgis_server.engines.fake import FakeRunner
from tgis_server.errors import GroupFailed, ModelError, PeerLost
from tgis_server.shard.adapters import Stager, StagingFollower
from tgis_server.shard.follower import follow
from tgis_server.shard.inbox import Acknowledged, Inbox, Message, SideFailure
from tgis_server.shard.status import ShardStatus
from tgis_server.wire import endpoints, plans
from tgis_server.wire.control import Acknowledgement, ControlPublisher, ControlSubscriber
from tgis_server.wire.endpoints import Endpoint
from tgis_server.wire.messages import Adapter, NewSequence, SamplingParams, Staged, StepPlan, Wanted, pack_ids
from tgis_server.wire.plans import PlanPublisher, PlanSubscriber

ADAPTER = Adapter("a", "fake", b"digest", "/somewhere")


@pytest.fixture
def endpoint(tmp_path: Path) -> Endpoint:
    return Endpoint.unix(tmp_path / "channel.sock")


@pytest.fixture
def plan_channel(endpoint: Endpoint) -> Iterator[tuple[PlanPublisher, PlanSubscriber]]:
    with closing(PlanPublisher(endpoint, 1)) as publisher, closing(PlanSubscriber.connect(endpoint, 1)) as subscriber:
        publisher.wait_for_followers(1)
        yield publisher, subscriber


@pytest.fixture
def control(endpoint: Endpoint) -> Iterator[tuple[ControlPublisher, list[ControlSubscriber]]]:
    """A control channel with two followers."""
    with closing(ControlPublisher(endpoint, 2)) as publisher:
        subscribers = [ControlSubscriber.connect(endpoint, 1) for _ in range(2)]
        publisher.wait_for_followers(1)
        yield publisher, subscribers
        for subscriber in subscribers:
            subscriber.close()


def large_plan(step: int, allowance_s: float) -> StepPlan:
    """A plan larger than a socket's buffer."""
    new = NewSequence(0, pack_ids(range(1_000_000)), 1, 0, SamplingParams(), Wanted())
    return StepPlan(step, [new], allowance_s=allowance_s)


def test_only_the_owner_may_connect(endpoint: Endpoint) -> None:
    with closing(ControlPublisher(endpoint, 1)):
        assert stat.S_IMODE(Path(endpoint.address).stat().st_mode) == 0o600


def test_an_endpoint_with_an_unknown_scheme_is_refused() -> None:
    with pytest.raises(ValueError, match="no transport for endpoints of scheme 'tcp'"):
        Endpoint("tcp", "10.0.0.1:1").make_socket()


def test_a_follower_that_reads_nothing_is_lost_once_its_step_should_have_ended(
    plan_channel: tuple[PlanPublisher, PlanSubscriber], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plans, "SEND_TIMEOUT_S", 0.05)

    with pytest.raises(PeerLost, match="no longer accepts plans"):
        plan_channel[0].publish(large_plan(1, 0.0))


def test_the_leader_waits_for_a_follower_in_a_long_step(
    plan_channel: tuple[PlanPublisher, PlanSubscriber], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plans, "SEND_TIMEOUT_S", 0.05)
    publisher, subscriber = plan_channel
    publisher.publish(StepPlan(1, allowance_s=10.0))
    received: list[Any] = []
    # The follower's step takes 0.3 s.
    reader = threading.Timer(0.3, lambda: received.extend([subscriber.receive(), subscriber.receive()]))
    reader.start()

    publisher.publish(large_plan(2, 0.0))

    reader.join(10)
    assert [plan.step for plan in received] == [1, 2]


def test_a_malformed_plan_ends_its_reader(plan_channel: tuple[PlanPublisher, PlanSubscriber]) -> None:
    plan_channel[0]._followers.send(b"\xff\xff")

    with pytest.raises(GroupFailed, match=r"A plan cannot be applied: the message .*This is a defect"):
        plan_channel[1].receive()


def test_an_adapter_reaches_every_follower_and_their_replies_return(
    control: tuple[ControlPublisher, list[ControlSubscriber]],
) -> None:
    publisher, subscribers = control
    answers = [Acknowledgement(b"digest", 1), Acknowledgement(b"digest", 2, "no room")]

    publisher.stage(ADAPTER)
    received = [subscriber.receive() for subscriber in subscribers]
    for subscriber, answer in zip(subscribers, answers, strict=True):
        subscriber.acknowledge(answer)

    assert received == [ADAPTER, ADAPTER]
    assert sorted([publisher.receive(), publisher.receive()], key=lambda answer: answer.rank) == answers


@pytest.mark.parametrize(
    ("data", "problem"),
    [(b"\xff\xff", "the message "), (b"", "adapter.digest is empty")],
    ids=["bytes", "empty"],
)
def test_a_malformed_control_message_ends_its_reader(
    data: bytes, problem: str, control: tuple[ControlPublisher, list[ControlSubscriber]]
) -> None:
    control[0]._followers.send(data)

    with pytest.raises(GroupFailed, match=f"A message of the control channel cannot be applied: {problem}"):
        control[1][0].receive()


def test_the_leader_notices_that_a_follower_is_gone(
    control: tuple[ControlPublisher, list[ControlSubscriber]],
) -> None:
    publisher, subscribers = control
    subscribers[1].close()

    with pytest.raises(PeerLost):
        publisher.receive()


def test_a_follower_notices_that_the_leader_is_gone(
    control: tuple[ControlPublisher, list[ControlSubscriber]],
) -> None:
    publisher, subscribers = control
    publisher.close()

    assert subscribers[0].receive() is None
    with pytest.raises(PeerLost):
        subscribers[0].acknowledge(Acknowledgement(b"digest", 1))


# Staging on all ranks


def take(inbox: Inbox, count: int) -> list[Message]:
    messages: list[Message] = []
    while len(messages) < count:
        messages += inbox.drain(wait=True)
    return messages


class StagingRunner(FakeRunner):
    """A runner that only stages."""

    capacity = Capacity(1, 1, 1)

    def __init__(self, stage: Callable[[Adapter], None]) -> None:
        self.stage = stage  # type: ignore[method-assign]


def succeed(adapter: Adapter) -> None:
    pass


def refuse(adapter: Adapter) -> None:
    raise ModelError(f"adapter {adapter.id} has a rank of 99")


def break_down(adapter: Adapter) -> None:
    raise ZeroDivisionError("oh")


def refuse_in_no_text(adapter: Adapter) -> None:
    raise ModelError("\udcff")


@pytest.mark.parametrize(
    ("ranks", "error"),
    [
        ((succeed, succeed, succeed), ""),
        ((succeed, succeed, refuse), "adapter a has a rank of 99"),
        ((refuse, succeed, succeed), "adapter a has a rank of 99"),
        ((succeed, break_down, succeed), "the adapter a cannot be read on shard 1: ZeroDivisionError: oh"),
    ],
)
def test_an_adapter_is_staged_once_all_ranks_have_read_it(
    ranks: tuple[Callable[[Adapter], None], ...],
    error: str,
    control: tuple[ControlPublisher, list[ControlSubscriber]],
) -> None:
    inbox = Inbox()
    publisher, subscribers = control
    for rank, subscriber in enumerate(subscribers, start=1):
        StagingFollower(StagingRunner(ranks[rank]), subscriber, rank).start()
    stager = Stager(StagingRunner(ranks[0]), publisher, inbox)

    stager.stage(ADAPTER)
    outcomes = [stager.note(message.answer) for message in take(inbox, 3) if isinstance(message, Acknowledged)]

    assert outcomes == [[], [], [Staged(b"digest", error)]]


def test_an_adapter_that_could_not_be_read_can_be_staged_later() -> None:
    inbox = Inbox()
    runner = StagingRunner(refuse)
    stager = Stager(runner, None, inbox)
    outcomes = []

    for runner.stage in (refuse, succeed):  # type: ignore[method-assign]
        stager.stage(ADAPTER)
        outcomes += [stager.note(message.answer) for message in take(inbox, 1) if isinstance(message, Acknowledged)]

    assert outcomes == [[Staged(b"digest", "adapter a has a rank of 99")], [Staged(b"digest")]]


class Plans(PlanSubscriber):
    """A leader that sends the same plan again and again; by default an empty one."""

    def __init__(self, plan: StepPlan = StepPlan(0)) -> None:  # noqa: B008  frozen
        self.plan = plan

    def receive(self) -> StepPlan:
        return self.plan


def test_a_follower_checks_a_plan_before_it_computes_it() -> None:
    with pytest.raises(GroupFailed, match="The plan of step 3 cannot be applied: slots names slot 5, which is empty"):
        follow(StagingRunner(succeed), ShardStatus(), Plans(StepPlan(3, [], [5], [1], [[]], [True])))


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (Acknowledgement(b"other", 0), "digest is 6f74686572, which was not requested from any rank"),
        (Acknowledgement(b"digest", 1), "rank is 1, which does not exist or has already answered"),
    ],
)
def test_an_unexpected_reply_ends_the_group(answer: Acknowledgement, problem: str) -> None:
    stager = Stager(StagingRunner(succeed), None, Inbox())
    stager.stage(ADAPTER)

    with pytest.raises(GroupFailed, match=problem):
        stager.note(answer)


def test_the_step_loop_learns_that_a_follower_died_while_staging(
    control: tuple[ControlPublisher, list[ControlSubscriber]],
) -> None:
    inbox = Inbox()
    publisher, subscribers = control
    Stager(StagingRunner(succeed), publisher, inbox).stage(ADAPTER)
    subscribers[0].receive()
    subscribers[0].close()

    assert {type(message) for message in take(inbox, 2)} == {Acknowledged, SideFailure}


def test_a_malformed_message_to_a_followers_side_thread_ends_its_step_loop(
    control: tuple[ControlPublisher, list[ControlSubscriber]],
) -> None:
    publisher, subscribers = control
    staging = StagingFollower(StagingRunner(succeed), subscribers[0], 1)
    publisher._followers.send(b"\xff\xff")

    staging._answer()

    with pytest.raises(GroupFailed, match="A message of the control channel"):
        follow(StagingRunner(succeed), ShardStatus(), Plans(), staging)


def test_any_error_of_a_side_thread_ends_the_step_loop_of_its_rank(
    control: tuple[ControlPublisher, list[ControlSubscriber]],
) -> None:
    publisher, subscribers = control
    inbox = Inbox()
    staging = StagingFollower(StagingRunner(refuse_in_no_text), subscribers[0], 1)
    publisher.stage(ADAPTER)

    staging._answer()
    Stager(StagingRunner(succeed), publisher, inbox).stage(Adapter("\udcff", "fake", b"digest"))

    with pytest.raises(UnicodeEncodeError):
        staging.check()
    (failure,) = take(inbox, 1)
    assert isinstance(failure, SideFailure)


def test_a_follower_waits_for_a_late_leader(endpoint: Endpoint) -> None:
    connected: list[endpoints.Peer] = []
    thread = threading.Thread(target=lambda: connected.append(endpoints.connect(endpoint, 10)))
    thread.start()

    with closing(PlanPublisher(endpoint, 1)) as publisher:
        publisher.wait_for_followers(10)
        thread.join(10)

    connected[0].close()
