"""When a group is ready and when it is dead, judged by its shards' health replies."""

from __future__ import annotations

import asyncio
from pathlib import Path

import grpc
import pytest

from frontends import run, until
from tgis_server.errors import PeerLost
from tgis_server.frontend import shard_health
from tgis_server.frontend.shard_health import GroupHealth, ShardHealth
from tgis_server.wire import shard_pb2 as pb
from tgis_server.wire.shard_pb2_grpc import ShardServicer, add_ShardServicer_to_server

SERVING = pb.HealthReply.SERVING


def serving(**values: object) -> pb.HealthReply:
    return pb.HealthReply(state=SERVING, **values)


def verdicts(*replies: pb.HealthReply | None) -> list[str | None]:
    shard = ShardHealth(1, step_timeout_s=60)
    return [shard.observe(reply) for reply in replies]


def test_a_shard_that_answers_is_alive():
    assert verdicts(pb.HealthReply(), serving(), serving(step_age_s=59), serving(tick_age_s=1)) == [None] * 4


def test_three_unanswered_calls_in_a_row_mean_that_a_shard_is_dead():
    assert verdicts(serving(), None, None, serving(), None, None, None) == [
        *[None] * 6,
        "Shard 1 no longer answers.",
    ]


def test_a_shard_that_is_silent_while_loading_is_alive():
    assert verdicts(None, None, None, None, pb.HealthReply(), None, None, None, None) == [None] * 9


def test_a_shard_whose_step_runs_too_long_is_dead():
    assert verdicts(serving(step_age_s=61)) == [
        "Shard 1 is hung: its current step has run for 61 s, more than --step-timeout 60."
    ]


def test_a_step_may_take_as_long_as_the_leader_allows():
    assert verdicts(serving(step_age_s=499, allowance_s=500), serving(step_age_s=501, allowance_s=500)) == [
        None,
        "Shard 1 is hung: its current step has run for 501 s, more than the 500 s allowed for this step.",
    ]


def test_an_allowance_below_the_step_timeout_has_no_effect():
    assert verdicts(serving(step_age_s=59, allowance_s=2)) == [None]


def test_a_shard_whose_idle_loop_misses_its_ticks_is_dead():
    assert verdicts(serving(executed_steps=5, tick_age_s=3), serving(executed_steps=5, tick_age_s=4)) == [
        None,
        "Shard 1 is hung: its step loop has not answered for 4 s.",
    ]


def test_a_shard_with_an_old_tick_between_long_steps_is_alive():
    assert (
        verdicts(
            serving(executed_steps=5, step_age_s=9, tick_age_s=9),
            serving(executed_steps=6, tick_age_s=10),
            serving(executed_steps=7, tick_age_s=11),
        )
        == [None] * 3
    )


def test_a_follower_without_ticks_is_alive_while_its_leader_waits_for_the_device():
    shard = ShardHealth(1, 60)

    replies = [serving(executed_steps=5, tick_age_s=age) for age in (3, 4, 20)]

    assert [shard.observe(reply, expects_ticks=False) for reply in replies] == [None] * 3


def verdicts_of_group(*rounds: tuple[pb.HealthReply | None, ...]) -> list[str | None]:
    group = GroupHealth([Path("shard-0.sock"), Path("shard-1.sock")], step_timeout_s=60)
    return [group.judge(replies) for replies in rounds]


def test_a_follower_without_ticks_is_not_to_blame_while_its_leader_is_silent():
    rounds = [(serving(), serving()), *((None, serving(tick_age_s=age)) for age in (2, 4, 6))]

    assert verdicts_of_group(*rounds) == [None, None, None, "Shard 0 no longer answers."]


def test_a_follower_gets_time_for_its_ticks_when_its_leader_answers_again():
    rounds = [(serving(), serving()), (None, serving(tick_age_s=2)), (serving(), serving(tick_age_s=4))]

    assert verdicts_of_group(*rounds) == [None, None, None]


def test_a_follower_without_ticks_from_an_idle_leader_is_to_blame():
    rounds = [(serving(), serving()), (serving(), serving(tick_age_s=4))]

    assert verdicts_of_group(*rounds) == [None, "Shard 1 is hung: its step loop has not answered for 4 s."]


def test_a_leader_is_not_to_blame_for_a_step_that_waits_for_a_silent_follower():
    rounds = [(serving(), serving()), *((serving(step_age_s=age), None) for age in (60, 61, 62))]

    assert verdicts_of_group(*rounds) == [None, None, None, "Shard 1 no longer answers."]


def test_loading_shards_are_described_with_their_progress():
    group = GroupHealth([Path(f"shard-{rank}.sock") for rank in range(3)], step_timeout_s=60)

    group.judge(
        [
            pb.HealthReply(phase="reading weights", done=1288490189, total=2899102925),
            pb.HealthReply(phase="reading weights", done=1 << 20, total=4 << 20),
            None,
        ]
    )

    assert group.describe() == (
        "shard-0: reading weights, 1.2 GiB of 2.7 GiB (44%), "
        "shard-1: reading weights, 1 MiB of 4 MiB (25%), shard-2: starting"
    )


class FakeShard(ShardServicer):
    """Answers Health with ``reply``, or not at all if it is None."""

    def __init__(self) -> None:
        self.reply: pb.HealthReply | None = pb.HealthReply()

    async def Health(self, request: pb.HealthRequest, context: grpc.aio.ServicerContext) -> pb.HealthReply:  # noqa: N802
        if self.reply is None:
            await asyncio.sleep(60)
        return self.reply or pb.HealthReply()


async def start_shard(path: Path) -> tuple[FakeShard, grpc.aio.Server]:
    shard, server = FakeShard(), grpc.aio.server()
    add_ShardServicer_to_server(shard, server)
    server.add_insecure_port(f"unix:{path}")
    await server.start()
    return shard, server


@pytest.fixture(autouse=True)
def _quick_polls(monkeypatch):
    monkeypatch.setattr(shard_health, "POLL_S", 0.05)
    monkeypatch.setattr(shard_health, "CALL_TIMEOUT_S", 0.1)


def test_a_group_is_ready_when_all_shards_serve_and_dead_when_one_is_lost(tmp_path):
    async def test() -> None:
        group = GroupHealth([tmp_path / "shard-0.sock", tmp_path / "shard-1.sock"], step_timeout_s=60)
        watching = asyncio.create_task(group.run())
        ready = asyncio.create_task(group.wait_until_serving())
        one, one_server = await start_shard(tmp_path / "shard-0.sock")
        one.reply = serving()
        two, two_server = await start_shard(tmp_path / "shard-1.sock")
        await asyncio.sleep(0.3)
        assert not ready.done()

        two.reply = serving()
        await ready
        two.reply = None

        with pytest.raises(PeerLost, match=r"Shard 1 no longer answers\."):
            await watching
        for server in (one_server, two_server):
            await server.stop(None)

    run(test)


def test_polling_ends_with_the_front_end(tmp_path):
    async def test() -> None:
        watching = asyncio.create_task(GroupHealth([tmp_path / "none.sock"], step_timeout_s=60).run())
        await asyncio.sleep(0.05)

        watching.cancel()
        await until(watching.done)
        assert watching.cancelled()

    run(test)
