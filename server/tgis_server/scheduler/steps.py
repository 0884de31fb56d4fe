"""A step: its plan, and what the scheduler keeps until the commit."""

from __future__ import annotations

from dataclasses import dataclass, field

from tgis_server.scheduler.budget import StepLoad
from tgis_server.scheduler.memory import Offer
from tgis_server.scheduler.sequence import Sequence, State
from tgis_server.wire.messages import Activation, StepPlan


@dataclass(slots=True)
class Row:
    """One row of a plan."""

    sequence: Sequence
    residence: int
    start: int  # num_planned before this row
    end: int  # num_planned after it
    is_prefill: bool
    sample: bool

    @property
    def is_current(self) -> bool:
        """Whether the sequence has kept the slot that it had in this step."""
        return self.residence == self.sequence.residence


@dataclass(slots=True)
class Draft:
    """The plan of one step, while it is being made and until it is committed."""

    plan: StepPlan
    planned_at: float = 0.0
    rows: list[Row] = field(default_factory=list)
    load: StepLoad = field(default_factory=StepLoad)
    num_started: int = 0
    num_encoded_tokens: int = 0
    cached_tokens: int = 0
    preemptions: int = 0
    needs_prefill_step: bool = False  # tokens that cannot be split need a step without decode rows

    def add_new(self, sequence: Sequence, offer: Offer, activation: Activation | None) -> None:
        """Add a sequence that got its slot; its encoder runs in this step unless the same input is already encoded."""
        if activation:
            self.plan.activate.append(activation)
        self.plan.new.append(sequence.to_new(encodes=offer.num_to_encode > 0))
        self.cached_tokens += offer.num_cached_tokens
        if offer.num_to_encode:
            self.plan.encode.append(sequence.slot)
            self.num_encoded_tokens += offer.num_to_encode
            self.load.add(0, offer.num_to_encode)

    def add_row(self, sequence: Sequence, num_tokens: int) -> None:
        """Add the next tokens of a sequence, which already has the blocks for them."""
        plan = self.plan
        start = sequence.num_planned
        end = start + num_tokens
        sample = end == sequence.num_known
        sequence.num_planned = end
        plan.slots.append(sequence.slot)
        plan.num_tokens.append(num_tokens)
        plan.new_blocks.append(sequence.blocks[sequence.num_sent_blocks :])
        plan.sample.append(sample)
        self.rows.append(Row(sequence, sequence.residence, start, end, start < sequence.prefill_end, sample))
        sequence.num_sent_blocks = len(sequence.blocks)
        if sample:
            sequence.num_in_flight += 1
            sequence.state = State.RUNNING
