"""The error of a step that does not fit into memory, for leader and followers."""

from __future__ import annotations

from tgis_server import failures
from tgis_server.errors import OutOfMemory, TgisError
from tgis_server.wire.messages import StepPlan


def step_too_large(plan: StepPlan, error: OutOfMemory) -> TgisError:
    """The error that ends the shard. Warm-up steps have number 0."""
    if not plan.step:
        return failures.WARM_UP_TOO_LARGE.error(num_tokens=plan.total_tokens, reason=error)
    return failures.STEP_TOO_LARGE.error(
        step=plan.step, num_tokens=plan.total_tokens, num_rows=plan.num_rows, reason=error
    )
