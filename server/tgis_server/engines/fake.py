"""An engine whose tokens can be computed by hand. It runs the whole product without weights, for tests and rehearsals.

Its "keys and values" are numbers, written into blocks or rows like those of a real engine and read back through the
block tables. The next token is

    (sum of the numbers of all tokens so far + sum of the encoder's numbers + number of tokens) mod vocab_size

so any mistake in blocks, positions, the prefix cache, sharing or preemption changes the output. A token's number is

    its id + the adapter's number + 1 if ``is_rope_long`` + the sum of the encoder's numbers

because all of these change a real engine's keys, too (see ``cache_root``). A virtual row has the id that
:func:`virtual_id` returns, whatever the prompt contains. The encoder's numbers are computed in the same way, without
the last two terms. An adapter's number is the sum of its digest's bytes. With ``temperature`` > 0, the seed is added to
the sum. A guided row takes the first allowed id that is not below the computed one, or else the lowest allowed id.

A step takes ``--rehearse-step-ms``, plus ``--rehearse-attention-ns`` for each pair of a token and a key.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from tgis_server.engines.api import Capacity, ModelFacts, Progress, RunnerCaps
from tgis_server.errors import ModelError
from tgis_server.model_files import read_json
from tgis_server.options import Fault
from tgis_server.run import Run
from tgis_server.wire.messages import (
    NO_ADAPTER,
    Adapter,
    Masks,
    NewSequence,
    StepPlan,
    StepTokens,
    TokenDetail,
    TokenIds,
)
from tgis_server.words.processes import shard_name

BROKEN = "broken"  # adapters whose id starts with this cannot be staged
MAX_ADAPTERS = 4  # in a rehearsal


@dataclass(slots=True)
class _Numbers:
    """The numbers of one sequence, or of its encoder: in blocks of the cache, or in a separate row."""

    cells: list[int]
    block_size: int
    blocks: list[int]

    def write(self, position: int, number: int) -> None:
        block, offset = divmod(position, self.block_size)
        self.cells[self.blocks[block] * self.block_size + offset] = number

    def total(self, count: int) -> int:
        """The sum of the first ``count`` numbers."""
        total, size = 0, self.block_size
        for i in range(-(-count // size)):
            start = self.blocks[i] * size
            total += sum(self.cells[start : start + min(size, count - i * size)])
        return total


@dataclass(slots=True)
class _Slot:
    sequence: NewSequence
    token_ids: TokenIds
    num_computed: int
    numbers: _Numbers
    encoder_numbers: _Numbers


@dataclass(frozen=True, slots=True)
class _Row:
    """The outcome of one row's forward pass."""

    slot: _Slot
    end: int  # tokens computed
    next_id: int | None  # None: the prompt continues in a later step


@dataclass(slots=True)
class FakeLaunched:
    plan: StepPlan
    rows: list[_Row]
    step_s: float
    ready_at: float
    prompt_details: dict[int, list[TokenDetail]]
    tokens: StepTokens | None = None  # once the step is finished


class FakeRunner:
    """Executes plans exactly as a real runner does, with any ``caps`` and ``capacity``; needs no device."""

    def __init__(
        self,
        *,
        vocab_size: int,
        capacity: Capacity,
        caps: RunnerCaps = RunnerCaps(),  # noqa: B008  frozen
        step_s: float = 0.0,
        attention_s: float = 0.0,
        fault: Fault | None = None,
        dtype: str = "float32",
    ) -> None:
        """
        Args:
            dtype: only reported; nothing is computed in it.
        """
        self.caps = caps
        self.capacity = capacity
        self.facts = ModelFacts("fake", dtype, "none", vocab_size, end_ids=())
        self._step_s = step_s
        self._attention_s = attention_s
        self._fault = fault
        self._cache = [0] * (capacity.num_blocks * capacity.block_size)
        self._slots: dict[int, _Slot] = {}
        self._staged: dict[bytes, int] = {}  # digest -> number
        self._places = [0] * capacity.max_adapters  # numbers of active adapters
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
            capacity=Capacity(
                config.rehearse_kv_blocks,
                config.kv_block_size,
                run.max_sequence_length,
                max_adapters=MAX_ADAPTERS,
            ),
            caps=RunnerCaps(plan_ahead=config.rehearse_plan_ahead),
            step_s=config.rehearse_step_ms / 1000,
            attention_s=config.rehearse_attention_ns / 1e9,
            fault=fault,
            dtype=run.dtype,
        )

    def launch(self, plan: StepPlan) -> FakeLaunched:
        started_at = time.monotonic()
        self._apply_state(plan)
        self._reach(f"step{plan.step}")
        for slot_id in plan.encode:
            self._encode(self._slots[slot_id])
        rows: list[_Row] = []
        prompt_details = {}
        num_products = 0
        for index, (slot_id, num_tokens, sample) in enumerate(
            zip(plan.slots, plan.num_tokens, plan.sample, strict=True)
        ):
            slot = self._slots[slot_id]
            end = slot.num_computed + num_tokens
            if row_details := self._compute(slot, end):
                prompt_details[index] = row_details
            num_products += num_tokens * end
            rows.append(_Row(slot, end, self._next_id(slot, end) if sample else None))
        step_s = self._step_s + self._attention_s * num_products
        self._device_free_at = max(self._device_free_at, started_at) + step_s
        launched = FakeLaunched(plan, rows, step_s, self._device_free_at, prompt_details)
        if not self.caps.plan_ahead:
            self._wait(launched)
        return launched

    def finish(self, launched: FakeLaunched, masks: Masks | None) -> None:
        self._reach(f"finish{launched.plan.step}")
        token_ids: list[list[int]] = []
        details = {}
        for index, row in enumerate(launched.rows):
            row.slot.num_computed = row.end
            if row.next_id is None:
                token_ids.append([])
                continue
            token_id = first_allowed(row.next_id, masks[index]) if masks and index in masks else row.next_id
            row.slot.token_ids.append(token_id)
            token_ids.append([token_id])
            wanted = row.slot.sequence.wanted
            if wanted.generated_tokens and wanted.any:
                details[index] = [self._detail(token_id, wanted.top_n)]
        launched.tokens = StepTokens(token_ids, details, launched.prompt_details, launched.step_s)

    def collect(self, launched: FakeLaunched) -> StepTokens:
        assert launched.tokens, "a step was collected before it was finished"
        self._wait(launched)
        return launched.tokens

    def stage(self, adapter: Adapter) -> None:
        try:
            self._reach("stage")
        except (OSError, RuntimeError) as error:
            raise ModelError(f"adapter {adapter.id} cannot be read: {error}") from error
        if adapter.id.startswith(BROKEN):
            raise ModelError(f"adapter {adapter.id} cannot be read: it is broken")
        self._staged[adapter.digest] = sum(adapter.digest)

    def close(self) -> None:
        self._slots.clear()

    def _reach(self, moment: str) -> None:
        if self._fault:
            self._fault.reach(moment)

    def _apply_state(self, plan: StepPlan) -> None:
        for slot_id in plan.free:
            del self._slots[slot_id]
        for activation in plan.activate:
            self._places[activation.place] = self._staged[activation.digest]
        for sequence in plan.new:
            self._slots[sequence.slot] = self._start(sequence)
        if self.caps.memory == "paged":
            for slot_id, blocks in zip(plan.slots, plan.new_blocks, strict=True):
                self._slots[slot_id].numbers.blocks += blocks

    def _start(self, sequence: NewSequence) -> _Slot:
        numbers, encoder_numbers = self._numbers([]), self._numbers(list(sequence.cross_blocks))
        return _Slot(sequence, sequence.token_ids[:], sequence.num_cached_tokens, numbers, encoder_numbers)

    def _numbers(self, blocks: list[int]) -> _Numbers:
        if self.caps.memory == "paged":
            return _Numbers(self._cache, self.capacity.block_size, blocks)
        length = self.capacity.max_padded_tokens
        return _Numbers([0] * length, length, [0])

    def _adapter_number(self, sequence: NewSequence) -> int:
        """Read in each step, to detect an adapter that loses its place while a sequence uses it."""
        return 0 if sequence.adapter_place == NO_ADAPTER else self._places[sequence.adapter_place]

    def _encode(self, slot: _Slot) -> None:
        sequence = slot.sequence
        adapter_number = self._adapter_number(sequence)
        for position, token_id in enumerate(sequence.encoder_ids):
            is_virtual = position < sequence.num_encoder_virtual
            number = (virtual_id(position) if is_virtual else token_id) + adapter_number
            slot.encoder_numbers.write(position, number)

    def _compute(self, slot: _Slot, end: int) -> list[TokenDetail]:
        """Write the numbers of the tokens before ``end``; return the details of the prompt tokens that follow them."""
        details = []
        sequence = slot.sequence
        wanted = sequence.wanted
        extra = self._adapter_number(sequence) + sequence.is_rope_long + self._encoder_total(slot)
        for position in range(slot.num_computed, end):
            token_id = virtual_id(position) if position < sequence.num_virtual else slot.token_ids[position]
            slot.numbers.write(position, token_id + extra)
            if wanted.input_tokens and wanted.any and position + 1 < sequence.prompt_length:
                details.append(self._detail(slot.token_ids[position + 1], wanted.top_n))
        return details

    def _encoder_total(self, slot: _Slot) -> int:
        return slot.encoder_numbers.total(slot.sequence.num_encoder_tokens)

    def _next_id(self, slot: _Slot, end: int) -> int:
        sampling = slot.sequence.sampling
        noise = 0 if sampling.is_greedy else slot.sequence.seed
        return (slot.numbers.total(end) + self._encoder_total(slot) + end + noise) % self.facts.vocab_size

    def _detail(self, token_id: int, top_n: int) -> TokenDetail:
        """The token's rank is its id plus one; the top tokens are its id and the ids after it."""
        tops = tuple((token_id + i) % self.facts.vocab_size for i in range(top_n))
        return TokenDetail(-0.5, token_id + 1, tops, tuple(-0.5 - i for i in range(top_n)))

    def _wait(self, launched: FakeLaunched) -> None:
        delay_s = launched.ready_at - time.monotonic()
        if delay_s > 0:
            time.sleep(delay_s)


def virtual_id(position: int) -> int:
    """The token id that stands for the virtual row at ``position``."""
    return 3 * position + 1


def first_allowed(token_id: int, mask: bytes) -> int:
    """The first id from ``token_id`` upwards, wrapping around, that ``mask`` allows; see ``Masks``."""
    count = 8 * len(mask)
    ids = ((token_id + i) % count for i in range(count))
    return next(i for i in ids if mask[i // 8] >> i % 8 & 1)


def read_vocab_size(model_dir: Path) -> int:
    """Number of pieces in the model's ``tokenizer.json``, including added ones."""
    tokenizer = read_json(model_dir / "tokenizer.json")
    vocab = tokenizer["model"]["vocab"]
    ids = set(vocab.values()) if isinstance(vocab, dict) else set(range(len(vocab)))
    return len(ids | {token["id"] for token in tokenizer.get("added_tokens", [])})
