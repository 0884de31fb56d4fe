"""What a shard says when a step does not fit into memory and it cannot go on. Leader and followers share it."""

from __future__ import annotations

from tgis_server import failures
from tgis_server.errors import OutOfMemory, TgisError
from tgis_server.wire.messages import StepPlan


def step_too_large(plan: StepPlan, error: OutOfMemory) -> TgisError:
    """The error that ends the shard. Warm-up steps have no number."""
    if not plan.step:
        return failures.WARM_UP_TOO_LARGE.error(num_tokens=plan.total_tokens, reason=error)
    return failures.STEP_TOO_LARGE.error(
        step=plan.step, num_tokens=plan.total_tokens, num_rows=plan.num_rows, reason=error
    )
