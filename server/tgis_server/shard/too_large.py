"""What a shard says when a step does not fit into memory and it cannot go on. Leader and followers share it."""

from __future__ import annotations

from tgis_server.errors import GroupFailed, NotEnoughDevices, OutOfMemory, TgisError
from tgis_server.wire.messages import StepPlan


def step_too_large(plan: StepPlan, error: OutOfMemory) -> TgisError:
    """The error that ends the shard. Warm-up steps have no number."""
    if not plan.step:
        return NotEnoughDevices(
            f"A step of {plan.total_tokens} tokens does not fit into memory beside the weights: {error}. "
            "Lower --kv-cache-memory, use more shards, or free memory."
        )
    return GroupFailed(
        f"Step {plan.step} with {plan.total_tokens} tokens of {plan.num_rows} sequences does not fit into memory: "
        f"{error}. Lower --max-batch-tokens, --max-batch-size or --kv-cache-memory."
    )
