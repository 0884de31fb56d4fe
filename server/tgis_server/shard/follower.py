"""A follower's step loop: it executes plans. Its results reach the leader through collectives."""

from __future__ import annotations

import time

from tgis_server.engines.api import ModelRunner
from tgis_server.errors import OutOfMemory
from tgis_server.shard.adapters import StagingFollower
from tgis_server.shard.plan_check import PlanCheck
from tgis_server.shard.status import ShardStatus
from tgis_server.shard.too_large import step_too_large
from tgis_server.wire.plans import PlanSubscriber


def follow(
    runner: ModelRunner, status: ShardStatus, plans: PlanSubscriber, staging: StagingFollower | None = None
) -> None:
    """Execute plans until the leader ends them. The first plan without rows ends the warm-up.

    Raises:
        PeerLost: the leader is gone.
        GroupFailed, NotEnoughDevices: a step does not fit into memory, or a message cannot be applied.
    """
    check = PlanCheck(runner.capacity)
    while (plan := plans.receive()) is not None:
        status.answer_tick()
        if staging:
            staging.check()
        check.apply(plan)
        if plan.slots or plan.free:
            status.begin_step(time.monotonic(), plan.allowance_s)
            try:
                runner.finish(runner.launch(plan), None)
            except OutOfMemory as error:
                raise step_too_large(plan, error) from error
            status.end_step()
            if plan.step:  # warm-up steps have no number and are not counted
                status.executed_steps += 1
        elif not status.is_serving:
            status.begin_serving()
