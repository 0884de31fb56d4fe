"""The native engine as a ``ModelRunner``: one rank's share of the model, its keys and values, and its slots.

``launch`` turns a plan into tensors and runs the decoder, ``finish`` samples, and ``collect`` waits and turns results
into messages. On CUDA the first two never wait for the device: input ids of decode rows, seen tokens and sampled ids
stay there.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from tgis_server.engines.api import Capacity, ModelFacts, Progress, RunnerCaps
from tgis_server.engines.native.batch import Batch, BatchBuilder, PromptPart
from tgis_server.engines.native.decoder_slots import DecoderSlots
from tgis_server.engines.native.encoder_slots import EncoderSlots
from tgis_server.engines.native.loading import LoadedModel, load
from tgis_server.engines.native.models.encoder_decoder import EncoderDecoder
from tgis_server.engines.sampling.api import Sampled
from tgis_server.engines.sampling.details import DetailTensors, to_messages
from tgis_server.engines.sampling.finite import are_finite
from tgis_server.engines.sampling.sampler import Sampler
from tgis_server.engines.sampling.staging import Staging
from tgis_server.errors import OutOfMemory
from tgis_server.host.allocation import ALLOCATION_FAILED
from tgis_server.options import Fault
from tgis_server.run import Run
from tgis_server.wire.messages import Adapter, Masks, StepPlan, StepTokens, TokenDetail, Wanted
from tgis_server.words.processes import shard_name

MAX_PROMPT_LOGITS_BYTES = 64 << 20  # per projection of prompt positions


@dataclass(frozen=True, slots=True)
class PromptDetails:
    """Details of consecutive prompt tokens of one row; the tensors are from ``Staging.fetch``."""

    row: int
    wanted: list[Wanted]  # one per token
    tensors: DetailTensors


@dataclass(frozen=True, slots=True)
class FiniteCheck:
    """Whether a step's values are finite; the tensor is from ``Staging.fetch``."""

    is_finite: Tensor  # (values,) bool
    rows: list[tuple[int, int, int]]  # row of the plan, start and end of its values

    def broken_rows(self) -> set[int]:
        if bool(self.is_finite.all()):
            return set()
        flags = self.is_finite.tolist()
        return {row for row, start, stop in self.rows if not all(flags[start:stop])}


@dataclass(slots=True)
class NativeStep:
    """A launched step."""

    plan: StepPlan
    forward_s: float = 0.0  # host time of ``launch`` and ``finish`` together
    batch: Batch | None = None  # until the step is finished
    logits: Tensor | None = None  # of the rows that sample, on rank 0, until the step is finished
    sample_rows: list[int] = field(default_factory=list)
    ids: Tensor | None = None  # (sampling rows,), from ``Staging.fetch``
    detail_rows: list[int] = field(default_factory=list)  # indices into sample_rows
    wanted: list[Wanted] = field(default_factory=list)
    details: DetailTensors | None = None
    prompt_details: list[PromptDetails] = field(default_factory=list)
    checks: list[FiniteCheck] = field(default_factory=list)
    events: tuple[torch.cuda.Event, torch.cuda.Event] | None = None  # start and end, on CUDA


class NativeRunner:
    """The runner of one rank. All calls except ``stage`` come from one thread."""

    def __init__(self, loaded: LoadedModel, fault: Fault | None = None) -> None:
        model = loaded.decoder
        self.caps = RunnerCaps(
            plan_ahead=loaded.device.type == "cuda",
            rope_border=loaded.rope_border,
        )
        self.capacity: Capacity = loaded.capacity
        self.facts: ModelFacts = loaded.facts
        self._decoder = model
        self._cache = loaded.cache
        self._group = loaded.group
        self._device = loaded.device
        self._fault = fault
        self._vocab_size = loaded.spec.vocab_size
        self._staging = Staging(loaded.device)
        max_blocks = -(-loaded.capacity.max_sequence_length // loaded.capacity.block_size)
        self._slots = DecoderSlots(loaded.num_slots, max_blocks, self._staging, loaded.rope_border)
        self._encoders: EncoderSlots | None = None
        if isinstance(model, EncoderDecoder):
            self._encoders = EncoderSlots(loaded.num_slots, max_blocks, model, loaded.ops, loaded.cache, self._staging)
        modifiers = list(model.modifiers.values())
        self._builder = BatchBuilder(self._slots, loaded.ops, loaded.cache, modifiers, self._staging, self._encoders)
        vocab_size = loaded.spec.vocab_size
        self._sampler = Sampler(vocab_size, self._staging, loaded.ops.make_sampling(vocab_size, self._staging))

    @classmethod
    def load(cls, run: Run, rank: int, progress: Progress) -> NativeRunner:
        """Load this rank's weights and allocate its cache. See ``load_runner`` for errors."""
        fault = Fault.of(run.config.fault, shard_name(rank))
        loaded = load(run, rank, progress)
        if fault:
            fault.reach("load")
        return cls(loaded, fault)

    @torch.inference_mode()
    def launch(self, plan: StepPlan) -> NativeStep:
        started_s = time.perf_counter()
        self._apply(plan)
        step = NativeStep(plan)
        if plan.slots:
            with self._memory_errors():
                if self._fault:
                    self._fault.reach(f"step{plan.step}")
                self._run(plan, step)
            step.forward_s = time.perf_counter() - started_s
        return step

    @torch.inference_mode()
    def finish(self, launched: NativeStep, masks: Masks | None) -> None:
        step = launched
        if step.batch is None:  # no rows
            return
        started_s = time.perf_counter()
        with self._memory_errors():
            if step.batch.sample_rows:
                self._sample(step, step.batch, masks)
        # Slots change last: a failure leaves them as they were.
        self._slots.advance(step.plan)
        step.batch = step.logits = None
        if step.events is not None:
            step.events[1].record()
        step.forward_s += time.perf_counter() - started_s

    @torch.inference_mode()
    def collect(self, launched: NativeStep) -> StepTokens:
        step = launched
        forward_s = step.forward_s
        if step.events is not None:
            step.events[1].synchronize()
            forward_s = step.events[0].elapsed_time(step.events[1]) / 1000
        token_ids: list[list[int]] = [[] for _ in step.plan.slots]
        if step.ids is not None:
            for row, token_id in zip(step.sample_rows, step.ids.tolist(), strict=True):
                token_ids[row] = [token_id]
        details = {}
        if step.details is not None:
            messages = to_messages(step.details, step.wanted)
            details = {step.sample_rows[i]: [m] for i, m in zip(step.detail_rows, messages, strict=True)}
        prompt_details: dict[int, list[TokenDetail]] = {}
        for part in step.prompt_details:
            prompt_details.setdefault(part.row, []).extend(to_messages(part.tensors, part.wanted))
        not_finite = sorted(set[int]().union(*(check.broken_rows() for check in step.checks)))
        return StepTokens(token_ids, details, prompt_details, forward_s, not_finite)

    def stage(self, adapter: Adapter) -> None:
        raise NotImplementedError("this engine does not support adapters")

    def close(self) -> None:
        self._group.close()

    def _apply(self, plan: StepPlan) -> None:
        """Apply state changes in the order that ``StepPlan`` defines. Only rank 0 samples."""
        self._slots.apply(plan)
        if self._encoders:
            self._encoders.apply(plan)
        if self._group.rank == 0:
            for slot in plan.free:
                self._sampler.stop(slot)
            for new in plan.new:
                self._sampler.start(new.slot, new.token_ids, new.sampling)

    def _run(self, plan: StepPlan, step: NativeStep) -> None:
        """Run everything except the sampling. Changes no slots, so a failure leaves them as they were."""
        if self._device.type == "cuda":
            step.events = (_event(), _event())
            step.events[0].record()
        if plan.encode:
            assert self._encoders, "StepPlan.encode: this model has no encoder"
            self._encoders.encode(plan.encode)
        batch = self._builder.build(plan)
        hidden = self._decoder.forward(batch.inputs, self._cache)
        if self._group.rank == 0 and (max(plan.num_tokens) > 1 or not all(plan.sample)):
            # A chunk has logits for at most its last token, but other requests may reuse the blocks that it wrote.
            step.checks.append(FiniteCheck(self._staging.fetch(are_finite(hidden)), batch.token_ranges()))
        for part in batch.prompt_parts:
            self._launch_prompt_details(step, part, hidden)
        if batch.sample_rows:
            step.logits = self._decoder.logits(hidden.index_select(0, batch.sample_tokens))
        step.batch = batch

    def _sample(self, step: NativeStep, batch: Batch, masks: Masks | None) -> None:
        """Rank 0 chooses token ids and shares them with all ranks."""
        logits = step.logits
        sampled: Sampled | None = None
        if logits is None:
            ids = torch.empty(len(batch.sample_rows), dtype=torch.int64, device=self._device)
        else:
            allowed = {i: masks[row] for i, row in enumerate(batch.sample_rows) if row in masks} if masks else None
            sampled = self._sampler.sample(logits, batch.sampling, allowed)
            ids = sampled.ids
            rows = [(row, i, i + 1) for i, row in enumerate(batch.sample_rows)]
            step.checks.append(FiniteCheck(self._staging.fetch(sampled.is_finite), rows))
            step.detail_rows = sampled.detail_rows
            step.wanted = [batch.sampling[i].wanted for i in sampled.detail_rows]
            if sampled.details is not None:
                step.details = sampled.details.map(self._staging.fetch)
        ids = self._group.share(ids)
        step.sample_rows = batch.sample_rows
        step.ids = self._staging.fetch(ids)
        if sampled is not None:
            self._sampler.note(sampled)
        self._slots.newest_ids.index_copy_(0, batch.sample_slots, ids)  # last: a repeated step reads the previous ids

    @contextmanager
    def _memory_errors(self) -> Iterator[None]:
        """Turn allocation failures into ``OutOfMemory``."""
        try:
            yield
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if self._device.type == "cuda":
                torch.cuda.empty_cache()
                raise OutOfMemory from error
            raise OutOfMemory("out of memory") from error

    def _launch_prompt_details(self, step: NativeStep, part: PromptPart, hidden: Tensor) -> None:
        """Start computing prompt details from the raw logits of the preceding positions, within bounded memory."""
        at_once = max(1, MAX_PROMPT_LOGITS_BYTES // (4 * self._vocab_size))
        for start in range(0, len(part.following_ids), at_once):
            following = part.following_ids[start : start + at_once]
            first = part.first_token + start
            logits = self._decoder.logits(hidden[first : first + len(following)])
            if logits is None:
                continue
            ids = self._staging.put(np.asarray(following), torch.int64)
            is_finite, details = self._sampler.describe(logits, ids, part.wanted.top_n)
            step.checks.append(FiniteCheck(self._staging.fetch(is_finite), [(part.row, 0, len(following))]))
            tensors = details.map(self._staging.fetch)
            step.prompt_details.append(PromptDetails(part.row, [part.wanted] * len(following), tensors))


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed: torch raises a specific class for that only on GPUs."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return re.search(ALLOCATION_FAILED, str(error)) is not None
