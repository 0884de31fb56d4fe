"""The contract between a shard's step loop and an engine.

An engine is a ``ModelRunner`` made by ``load.py``. It keeps the state of each slot (token ids, block table, sampling
state), executes plans, and decides nothing. All calls except ``stage`` come from the shard's main thread.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from tgis_server.wire.messages import Adapter, Masks, StepPlan, StepTokens


@dataclass(frozen=True, slots=True)
class RunnerCaps:
    """What a loaded runner can do, for the scheduler and the step loop."""

    memory: Literal["paged", "rows"] = "paged"  # KV blocks, or one row of a padded batch per sequence
    chunked_prefill: bool = True  # a prompt may be computed in several steps
    mixed_steps: bool = True  # a step may mix prefill and decode rows
    plan_ahead: bool = False  # launch returns before the device has finished, so the next step can be planned early
    prefix_cache: bool = True  # a sequence may start with blocks that another sequence has computed
    rope_border: int | None = None  # sequences with more tokens than this have ``is_rope_long`` (LongRoPE)


@dataclass(frozen=True, slots=True)
class Capacity:
    """Space for keys and values, measured after the weights are loaded; the same on every rank."""

    num_blocks: int
    block_size: int  # tokens per KV block
    max_sequence_length: int  # prompt + output; configured or inferred, and lowered to what fits
    max_rows: int = 0  # with memory "rows": sequences that can run at once
    max_padded_tokens: int = 0  # with memory "rows": number of rows times length of the longest sequence
    max_adapters: int = 0  # places for adapters


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """The loaded model as readiness, ``Info`` and the ready panel describe it."""

    model_type: str
    dtype: str
    device: str
    vocab_size: int
    end_ids: tuple[int, ...]  # end tokens of requests that do not choose their own
    weight_bytes: int = 0  # size in this rank's memory, as `tgis plan` predicts it
    kernels: str = ""  # the instruction set of compiled operations on a CPU; empty: torch's operations are used
    notes: tuple[str, ...] = ()  # e.g. "max_sequence_length lowered from 131072 to 8192: ..."


class Launched(Protocol):
    """A step in flight; opaque to everything but the runner that launched it."""

    @property
    def plan(self) -> StepPlan: ...


class ModelRunner(Protocol):
    """One rank's share of the model."""

    caps: RunnerCaps
    capacity: Capacity
    facts: ModelFacts

    def launch(self, plan: StepPlan) -> Launched:
        """Apply the plan's state changes and start its forward pass; may return before the device has finished.

        Raises:
            OutOfMemory: the step did not fit. State changes (``free``, ``activate``, ``new``, ``new_blocks``) have been
                applied; the computed positions of all rows are unchanged. Every other exception ends the group.
        """
        ...

    def finish(self, launched: Any, masks: Masks | None) -> None:
        """Start the sampling of a launched step: rank 0 samples and sends the ids to all ranks.

        Called on every rank, once for each :meth:`launch` and before the next one. If any row of the step is guided,
        the previous step has already been collected, because the masks depend on its tokens.

        Args:
            masks: the masks of guided rows, on rank 0 only. A guided row without a mask belongs to a sequence that has
                ended.

        Raises:
            OutOfMemory: as in :meth:`launch`; the step has ended, and its rows are as they were before the step.
        """
        ...

    def collect(self, launched: Any) -> StepTokens:
        """Wait for a finished step and return its tokens. Rank 0 only."""
        ...

    def stage(self, adapter: Adapter) -> None:
        """Read an adapter, so that a plan can activate it. Called from a side thread while steps run.

        Raises:
            ModelError: the adapter cannot be used; the message is meant for the client.
        """
        ...

    def close(self) -> None:
        """Release devices and process groups. Called once, even after a failure."""
        ...


# (phase, done, total): phases are short phrases such as "reading weights"; done and total are bytes, 0 if unknown.
Progress = Callable[[str, int, int], None]
