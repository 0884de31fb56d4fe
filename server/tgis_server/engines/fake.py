"""An engine whose tokens can be computed by hand. It runs the whole product without weights: tests and rehearsals.

Its "keys and values" are the token ids themselves, written into paged blocks like a real engine's. The next token is

    (sum of the ids of all tokens so far + their number) mod vocab_size

read back through the block table, so that any mistake in blocks, positions, prefix cache or preemption changes the
output. What else a real engine's keys and values depend on (see ``cache_root``) is added to each written id: the bytes
of the adapter's name, and 1 where ``is_rope_long``. With ``temperature`` > 0 the seed is added to the sum. Steps take
``--rehearse-step-ms``, and for each token and each key that it attends to ``--rehearse-attention-ns``.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path

from tgis_server.engines.api import Capacity, ModelFacts, Progress, RunnerCaps
from tgis_server.faults import Fault
from tgis_server.model_files import read_json
from tgis_server.processes import shard_name
from tgis_server.run import Run
from tgis_server.wire.messages import Adapter, Masks, NewSequence, StepPlan, StepTokens, TokenDetail


@dataclass(slots=True)
class _Slot:
    sequence: NewSequence
    token_ids: list[int]
    num_computed: int
    blocks: list[int] = field(default_factory=list)

    @property
    def written_extra(self) -> int:
        """Added to each id that is written to the cache."""
        return 1 + self.sequence.adapter_place + self.sequence.is_rope_long


@dataclass(frozen=True, slots=True)
class FakeLaunched:
    plan: StepPlan
    tokens: StepTokens
    ready_at: float


class FakeRunner:
    """Obeys plans exactly as a real runner does; needs no device."""

    def __init__(
        self,
        *,
        vocab_size: int,
        capacity: Capacity,
        eos_ids: tuple[int, ...] = (),
        step_s: float = 0.0,
        attention_s: float = 0.0,
        plan_ahead: bool = False,
        rope_border: int | None = None,
        fault: Fault | None = None,
    ) -> None:
        self.caps = RunnerCaps(plan_ahead=plan_ahead, rope_border=rope_border)
        self.capacity = capacity
        self.facts = ModelFacts("fake", "int32", "none", vocab_size, eos_ids)
        self._step_s = step_s
        self._attention_s = attention_s
        self._fault = fault
        self._cache = [0] * (capacity.num_blocks * capacity.block_size)
        self._slots: dict[int, _Slot] = {}
        self._device_free_at = 0.0

    @classmethod
    def load(cls, run: Run, rank: int, progress: Progress) -> FakeRunner:
        progress("pretending to read weights", 0, 0)
        config = run.config
        fault = Fault.of(config.fault, shard_name(rank))
        if fault:
            fault.reach("load")
        return cls(
            vocab_size=read_vocab_size(run.model_dir),
            capacity=Capacity(config.rehearse_kv_blocks, config.kv_block_size, run.max_sequence_length),
            step_s=config.rehearse_step_ms / 1000,
            attention_s=config.rehearse_attention_ns / 1e9,
            plan_ahead=config.rehearse_plan_ahead,
            fault=fault,
        )

    def launch(self, plan: StepPlan) -> FakeLaunched:
        started_at = time.monotonic()
        self._apply_state(plan)
        if self._fault:
            self._fault.reach(f"step{plan.step}")
        token_ids: list[list[int]] = []
        details, prompt_details = {}, {}
        num_products = 0
        for row, (slot_id, num_tokens, sample) in enumerate(zip(plan.slots, plan.num_tokens, plan.sample, strict=True)):
            slot = self._slots[slot_id]
            prompt_detail = self._compute(slot, num_tokens)
            num_products += num_tokens * slot.num_computed
            if prompt_detail:
                prompt_details[row] = prompt_detail
            token_ids.append([self._sample(slot)] if sample else [])
            wanted = slot.sequence.wanted
            if sample and wanted.generated_tokens and wanted.any:
                details[row] = [self._detail(token_ids[-1][0], wanted.top_n)]
        step_s = self._step_s + self._attention_s * num_products
        self._device_free_at = max(self._device_free_at, started_at) + step_s
        launched = FakeLaunched(plan, StepTokens(token_ids, details, prompt_details, step_s), self._device_free_at)
        if not self.caps.plan_ahead:
            self._wait(launched)
        return launched

    def finish(self, launched: FakeLaunched, masks: Masks | None) -> None:
        pass

    def collect(self, launched: FakeLaunched) -> StepTokens:
        self._wait(launched)
        return launched.tokens

    def stage(self, adapter: Adapter) -> None:
        pass

    def close(self) -> None:
        self._slots.clear()

    def _apply_state(self, plan: StepPlan) -> None:
        for slot_id in plan.free:
            del self._slots[slot_id]
        for sequence in plan.new:
            self._slots[sequence.slot] = _Slot(sequence, list(sequence.token_ids), sequence.num_cached_tokens)
        for slot_id, blocks in zip(plan.slots, plan.new_blocks, strict=True):
            self._slots[slot_id].blocks += blocks

    def _compute(self, slot: _Slot, num_tokens: int) -> list[TokenDetail]:
        """Write the next tokens into the cache; returns facts about the prompt tokens that follow each."""
        prompt_detail = []
        wanted = slot.sequence.wanted
        for position in range(slot.num_computed, slot.num_computed + num_tokens):
            self._cache[self._address(slot, position)] = slot.token_ids[position] + slot.written_extra
            if wanted.input_tokens and wanted.any and position + 1 < slot.sequence.prompt_length:
                prompt_detail.append(self._detail(slot.token_ids[position + 1], wanted.top_n))
        slot.num_computed += num_tokens
        return prompt_detail

    def _sample(self, slot: _Slot) -> int:
        total = sum(self._cache[self._address(slot, position)] for position in range(slot.num_computed))
        sampling = slot.sequence.sampling
        token_id = (
            total + slot.num_computed + (0 if sampling.is_greedy else slot.sequence.seed)
        ) % self.facts.vocab_size
        slot.token_ids.append(token_id)
        return token_id

    def _detail(self, token_id: int, top_n: int) -> TokenDetail:
        """The rank tells the token: its id plus one. The alternatives are the ids that follow."""
        tops = tuple((token_id + i) % self.facts.vocab_size for i in range(top_n))
        return TokenDetail(-0.5, token_id + 1, tops, tuple(-0.5 - i for i in range(top_n)))

    def _address(self, slot: _Slot, position: int) -> int:
        block, offset = divmod(position, self.capacity.block_size)
        return slot.blocks[block] * self.capacity.block_size + offset

    def _wait(self, launched: FakeLaunched) -> None:
        delay_s = launched.ready_at - time.monotonic()
        if delay_s > 0:
            time.sleep(delay_s)


def read_vocab_size(model_dir: Path) -> int:
    """Number of pieces in the model's ``tokenizer.json``, added ones included."""
    tokenizer = read_json(model_dir / "tokenizer.json")
    vocab = tokenizer["model"]["vocab"]
    ids = set(vocab.values()) if isinstance(vocab, dict) else set(range(len(vocab)))
    return len(ids | {token["id"] for token in tokenizer.get("added_tokens", [])})
