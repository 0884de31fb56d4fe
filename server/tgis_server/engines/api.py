"""The contract between a shard's step loop and an engine.

An engine is a ``ModelRunner`` made by ``load.py``. It keeps per-slot state (token ids, block tables, sampling
state), obeys plans, and decides nothing. All calls but ``stage`` come from one thread, the shard's main thread.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from tgis_server.engines.capabilities import RunnerCaps as RunnerCaps
from tgis_server.wire.messages import Adapter, Masks, StepPlan, StepTokens


@dataclass(frozen=True, slots=True)
class Capacity:
    """Room for keys and values, measured after the weights are loaded; the same on every rank."""

    num_blocks: int
    block_size: int  # tokens per KV block
    max_sequence_length: int  # prompt + output; what was configured or inferred, lowered to what fits
    max_rows: int = 0  # with memory "rows": sequences at once, and ...
    max_padded_tokens: int = 0  # ... the most rows times tokens of the longest one
    max_adapters: int = 0  # places for adapters


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What readiness, ``Info`` and the ready panel say about the loaded model."""

    model_type: str
    dtype: str
    device: str
    vocab_size: int
    end_ids: tuple[int, ...]  # end tokens of requests that do not choose their own
    weight_bytes: int = 0  # on this rank
    notes: tuple[str, ...] = field(default=())  # e.g. "max_sequence_length lowered from 131072 to 8192: ..."


class Launched(Protocol):
    """A step under way; opaque to everyone but the runner that made it."""

    @property
    def plan(self) -> StepPlan: ...


class ModelRunner(Protocol):
    """One rank's share of the model."""

    caps: RunnerCaps
    capacity: Capacity
    facts: ModelFacts

    def launch(self, plan: StepPlan) -> Launched:
        """Apply the plan's state changes and start its forward pass; may return before the device is done.

        Raises:
            OutOfMemory: the step did not fit. State changes (``free``, ``activate``, ``new``, ``new_blocks``) have been
                applied, the computed positions of all rows are as before the call. Every other exception ends the
                group.
        """
        ...

    def finish(self, launched: Any, masks: Masks | None) -> None:
        """Start the sampling of a launched step, on every rank: one share of the sampled ids. Rank 0 samples.

        Called once for each :meth:`launch`, before the next one. Where rows of the step are guided, the step before it
        has been collected: only its tokens tell the masks.

        Args:
            masks: of guided rows; rank 0 only. A guided row without a mask has ended meanwhile.

        Raises:
            OutOfMemory: as in :meth:`launch`; the step is over and its rows are as before it.
        """
        ...

    def collect(self, launched: Any) -> StepTokens:
        """Wait for a finished step and return its tokens. Rank 0 only."""
        ...

    def stage(self, adapter: Adapter) -> None:
        """Read an adapter, so that a plan can activate it. Called from a side thread, while steps run.

        Raises:
            ModelError: it cannot be used; the sentence is for the client. Nothing else is harmed.
        """
        ...

    def close(self) -> None:
        """Release devices and process groups. Called once, also after a failure."""
        ...


# (phase, done, total): phases are short verbs such as "reading weights"; done and total are bytes, 0 where unknown.
Progress = Callable[[str, int, int], None]
