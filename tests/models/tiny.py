"""Tiny random checkpoints of every family, transformers as the oracle, and a minimal scheduler for the runner.

Weights have enough variance that near-ties of logits are rare; everything is float32 on the CPU.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tgis_server.engines.native.runner import NativeRunner
from tgis_server.options import ServeConfig
from tgis_server.run import Run
from tgis_server.wire.messages import NewSequence, SamplingParams, StepPlan, StepTokens, TokenDetail, Wanted, pack_ids

VOCAB = 211  # prime: not divisible by any number of shards
BASE = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": None,
    "tie_word_embeddings": False,
}


def make_checkpoint(directory: Path, model_type: str, seed: int = 0, **overrides: Any) -> Path:
    """Save a random transformers model with the sizes of ``BASE`` and these changes."""
    config = AutoConfig.for_model(model_type, **{**BASE, **overrides})
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").float()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                parameter.uniform_(0.5, 1.5) if "norm" in name else parameter.normal_(std=0.3)
            else:
                parameter.normal_(std=0.25 if "embed" not in name else 1.0)
        for name, buffer in model.named_buffers():
            if name.endswith("e_score_correction_bias"):
                buffer.normal_(std=0.3)
    model.save_pretrained(directory)
    return directory


def edit_config(directory: Path, **changes: Any) -> None:
    """Change keys of config.json; ``None`` removes a key."""
    file = directory / "config.json"
    removed = {key for key, value in changes.items() if value is None}
    values = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({key: value for key, value in values.items() if key not in removed}))


class Oracle:
    """transformers with eager attention, in float32. Falcon's eager attention counts ALiBi twice."""

    def __init__(self, directory: Path) -> None:
        attention = "sdpa" if AutoConfig.from_pretrained(directory).model_type == "falcon" else "eager"
        self.model = AutoModelForCausalLM.from_pretrained(directory, attn_implementation=attention, dtype=torch.float32)
        self.model.eval()

    @torch.inference_mode()
    def generate(self, prompt: list[int], num_tokens: int) -> list[int]:
        """Generate greedily, without ending early."""
        out = self.model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
            max_new_tokens=num_tokens,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
        return out[0, len(prompt) :].tolist()

    @torch.inference_mode()
    def logits(self, ids: list[int]) -> torch.Tensor:
        """(len(ids), vocab), in one forward pass."""
        return self.model(torch.tensor([ids])).logits[0].float()


@dataclass(frozen=True)
class Model:
    """A checkpoint and its oracle."""

    directory: Path
    oracle: Oracle
    _expected: dict[tuple[tuple[int, ...], int], list[int]] = field(default_factory=dict)

    def expected(self, prompt: list[int], num_tokens: int) -> list[int]:
        """Tokens that transformers generates; computed once."""
        key = (tuple(prompt), num_tokens)
        if key not in self._expected:
            self._expected[key] = self.oracle.generate(prompt, num_tokens)
        return self._expected[key]


def make_run(
    directory: Path, run_dir: Path, *, num_shard: int = 1, max_sequence_length: int = 256, **config: Any
) -> Run:
    """A run of the native engine on the CPU in float32."""
    run_values: dict[str, Any] = {"dtype": "float32", "device": "cpu", "is_max_sequence_length_explicit": True}
    for name in ("dtype", "device", "is_max_sequence_length_explicit"):
        if name in config:
            run_values[name] = config.pop(name)
    defaults: dict[str, Any] = {"kv_block_size": 8, "max_batch_size": 8, "kv_cache_memory": 16 << 20}
    return Run(
        config=ServeConfig(**{**defaults, **config}),
        run_dir=run_dir,
        model_id=directory.name,
        model_dir=directory,
        engine="native",
        num_shard=num_shard,
        max_sequence_length=max_sequence_length,
        max_batch_tokens=512,
        tokenization_workers=1,
        shard_threads=1,
        **run_values,
    )


def start_step(runner: Any, plan: StepPlan) -> Any:
    """Launch and finish a step without collecting it."""
    launched = runner.launch(plan)
    runner.finish(launched, None)
    return launched


def run_step(runner: Any, plan: StepPlan) -> StepTokens:
    return runner.collect(start_step(runner, plan))


def no_progress(phase: str, done: int, total: int) -> None:
    pass


def load(directory: Path, run_dir: Path, **options: Any) -> NativeRunner:
    return NativeRunner.load(make_run(directory, run_dir, **options), 0, no_progress)


@dataclass
class Job:
    """A sequence to generate, and its results."""

    prompt: list[int]
    num_tokens: int
    sampling: SamplingParams = field(default_factory=SamplingParams)
    wanted: Wanted = field(default_factory=Wanted)
    seed: int = 0
    end_ids: frozenset[int] = frozenset({BASE["eos_token_id"]})  # do not end the job
    chunk: int = 1 << 30  # maximum prompt tokens per step
    cached_blocks: list[int] = field(default_factory=list)  # already computed for the beginning of the prompt
    generated: list[int] = field(default_factory=list)  # output; given tokens are recomputed, as after a preemption
    token_details: list[TokenDetail] = field(default_factory=list)
    prompt_details: list[TokenDetail] = field(default_factory=list)
    blocks: list[int] = field(default_factory=list)

    @property
    def is_done(self) -> bool:
        return len(self.generated) >= self.num_tokens


class Driver:
    """Runs jobs with simple plans: each step has all decode rows and a chunk of each prompt."""

    def __init__(self, runner: Any, followers: Any = None) -> None:
        self.runner = runner
        self.followers = followers  # called with each plan
        self.block_size = runner.capacity.block_size
        self.free_blocks = list(range(runner.capacity.num_blocks - 1, -1, -1))
        self.step = 0
        self.free_slots: list[int] = []

    def run(self, jobs: list[Job], *, start_every: int = 0) -> list[list[int]]:
        """Run all jobs to their end; job i starts at step i * ``start_every``. Returns generated ids."""
        waiting = list(enumerate(jobs))
        computed: dict[int, int] = {}
        first_step = self.step
        while waiting or computed:
            new = []
            while waiting and self.step - first_step >= waiting[0][0] * start_every:
                slot, job = waiting.pop(0)
                computed[slot] = len(job.cached_blocks) * self.block_size
                job.blocks = []
                ids = job.prompt + job.generated
                border = self.runner.caps.rope_border
                is_long = border is not None and len(ids) > border
                new.append(
                    NewSequence(
                        slot,
                        pack_ids(ids),
                        len(job.prompt),
                        computed[slot],
                        job.sampling,
                        job.wanted,
                        job.seed,
                        job.end_ids,
                        is_rope_long=is_long,
                    )
                )
            plan = self._plan(jobs, computed, new)
            tokens = self._step(plan)
            self._commit(jobs, computed, plan, tokens)
        return [job.generated for job in jobs]

    def _plan(self, jobs: list[Job], computed: dict[int, int], new: list[NewSequence]) -> StepPlan:
        slots, counts, blocks, sample = [], [], [], []
        for slot, done in computed.items():
            job = jobs[slot]
            total = len(job.prompt) + len(job.generated)
            count = min(job.chunk, total - done)
            taken = [] if job.blocks else list(job.cached_blocks)
            needed = -(-(done + count) // self.block_size) - len(job.blocks) - len(taken)
            taken += [self.free_blocks.pop() for _ in range(max(0, needed))]
            job.blocks += taken
            slots.append(slot)
            counts.append(count)
            blocks.append(taken)
            sample.append(done + count == total)
        plan = StepPlan(self.step, new, slots, counts, blocks, sample, self.free_slots)
        self.free_slots = []
        return plan

    def _step(self, plan: StepPlan) -> StepTokens:
        self.step += 1
        if self.followers is not None:
            self.followers(plan)
        return run_step(self.runner, plan)

    def _commit(self, jobs: list[Job], computed: dict[int, int], plan: StepPlan, tokens: StepTokens) -> None:
        for row, slot in enumerate(plan.slots):
            job = jobs[slot]
            computed[slot] += plan.num_tokens[row]
            job.generated += tokens.token_ids[row]
            job.token_details += tokens.details.get(row, [])
            job.prompt_details += tokens.prompt_details.get(row, [])
            if job.is_done:
                del computed[slot]
                self.free_slots.append(slot)


def prompt_of(length: int, seed: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, VOCAB, (length,), generator=generator).tolist()


def assert_same_tokens(oracle: Oracle, prompt: list[int], ours: list[int], theirs: list[int]) -> None:
    """The tokens are equal, or the oracle's two best logits at the first difference are within 1e-4."""
    if ours == theirs:
        return
    first = next(i for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b)
    best = oracle.logits(prompt + theirs[:first])[-1].topk(2).values
    gap = float(best[0] - best[1])
    assert gap < 1e-4, f"token {first} is {ours[first]}, not {theirs[first]}; the gap is {gap:.3g}"
