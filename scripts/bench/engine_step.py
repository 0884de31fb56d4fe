"""Step times and tokens per second of the native engine, without gRPC or a scheduler.

``python scripts/bench/engine_step.py MODEL_DIR [--rows 1 8 32] [--prompt 128] [--new 64] [--json FILE]``

Each row has its own prompt; prompts are prefilled together, with as many tokens per step as ``--budget`` allows. Tokens
per second are generated tokens over the whole run, including prefill; medians are over steps. Finally, the time to the
first token of a 512-token prompt is measured.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tgis_server.engines.native.families import read_spec
from tgis_server.engines.native.runner import NativeRunner
from tgis_server.options import ServeConfig
from tgis_server.run import Run
from tgis_server.wire.messages import NewSequence, SamplingParams, StepPlan, Wanted, pack_ids

LONG_PROMPT = 512


def make_run(arguments: argparse.Namespace, run_dir: Path) -> Run:
    length = max(LONG_PROMPT + 2, arguments.prompt + arguments.new + 1)
    blocks = (max(arguments.rows) + 1) * (length // 16 + 1)
    spec = read_spec(arguments.model)
    kv_bytes = blocks * 16 * 2 * spec.num_layers * spec.num_kv_heads * spec.head_dim * 4
    return Run(
        config=ServeConfig(kv_cache_memory=kv_bytes, max_batch_size=max(arguments.rows)),
        run_dir=run_dir,
        model_id=arguments.model.name,
        model_dir=arguments.model,
        engine="native",
        device=arguments.device,
        dtype=arguments.dtype,
        num_shard=1,
        max_sequence_length=length,
        is_max_sequence_length_explicit=True,
        max_batch_tokens=arguments.budget,
        tokenization_workers=1,
        shard_threads=arguments.threads,
    )


class Bench:
    """Runs plans whose rows are equally long and have consecutive blocks."""

    def __init__(self, runner: NativeRunner, vocab_size: int) -> None:
        self.runner = runner
        self.vocab_size = vocab_size
        self.step = 0

    def run(self, rows: int, prompt: int, new_tokens: int, budget: int) -> dict[str, Any]:
        """Prefill and decode; return the times of both and of the whole run."""
        decode_s = []
        started_s = time.perf_counter()
        prefill_s = sum(self.timed(plan) for plan in self.prefills(rows, prompt, budget))
        for position in range(prompt, prompt + new_tokens - 1):
            block = [self.blocks(row, position, position + 1) for row in range(rows)]
            plan = StepPlan(self.step, [], list(range(rows)), [1] * rows, block, [True] * rows)
            decode_s.append(self.timed(plan))
        total_s = time.perf_counter() - started_s
        self.run_step(StepPlan(self.step, free=list(range(rows))))
        return {
            "rows": rows,
            "prefill_s": prefill_s,
            "decode_step_ms": statistics.median(decode_s) * 1000 if decode_s else 0.0,
            "total_s": total_s,
            "tokens_per_s": rows * new_tokens / total_s,
            "decode_tokens_per_s": rows / statistics.median(decode_s) if decode_s else 0.0,
        }

    def blocks(self, row: int, start: int, stop: int) -> list[int]:
        """The new blocks of a row that computes positions ``start`` to ``stop`` - 1."""
        size = self.runner.capacity.block_size
        first = row * (self.runner.capacity.max_sequence_length // size + 1)
        return [first + i for i in range(-(-start // size), -(-stop // size))]

    def prefills(self, rows: int, prompt: int, budget: int) -> Iterator[StepPlan]:
        """Chunks of all prompts, one after the other, packed into steps of ``budget`` tokens."""
        pieces = [(row, start) for row in range(rows) for start in range(0, prompt, budget)]
        while pieces:
            plan = StepPlan(self.step)
            left = budget
            while pieces and min(budget, prompt - pieces[0][1]) <= left:
                row, start = pieces.pop(0)
                count = min(budget, prompt - start)
                if start == 0:
                    ids = [(7919 * row + 31 * i) % (self.vocab_size - 3) + 3 for i in range(prompt)]
                    plan.new.append(NewSequence(row, pack_ids(ids), prompt, 0, SamplingParams(), Wanted()))
                plan.slots.append(row)
                plan.num_tokens.append(count)
                plan.new_blocks.append(self.blocks(row, start, start + count))
                plan.sample.append(start + count == prompt)
                left -= count
            yield plan

    def timed(self, plan: StepPlan) -> float:
        started_s = time.perf_counter()
        self.run_step(plan)
        self.step += 1
        return time.perf_counter() - started_s

    def run_step(self, plan: StepPlan) -> None:
        launched = self.runner.launch(plan)
        self.runner.finish(launched, None)
        self.runner.collect(launched)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--new", type=int, default=64)
    parser.add_argument("--budget", type=int, default=512, help="maximum number of tokens per step")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=0, help="0 = torch's default")
    parser.add_argument("--repeat", type=int, default=1, help="report the best of this many runs")
    parser.add_argument("--json", type=Path, help="also write results here")
    parser.add_argument("--profile", type=int, metavar="ROWS", help="print torch's profile of decode steps instead")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as run_dir:
        started_s = time.perf_counter()
        runner = NativeRunner.load(make_run(arguments, Path(run_dir)), 0, lambda *_: None)
        load_s = time.perf_counter() - started_s
    bench = Bench(runner, runner.facts.vocab_size)
    bench.run(2, 32, 4, arguments.budget)  # warm up
    if arguments.profile:
        profile(bench, arguments)
        return
    results = []
    print(f"{arguments.model.name} {arguments.dtype} {arguments.device}: loaded in {load_s:.2f} s")
    print(f"{'rows':>5} {'prefill s':>10} {'decode step ms':>15} {'decode tok/s':>13} {'tok/s':>8}")
    for rows in arguments.rows:
        runs = [bench.run(rows, arguments.prompt, arguments.new, arguments.budget) for _ in range(arguments.repeat)]
        best = max(runs, key=lambda run: float(run["tokens_per_s"]))
        results.append(best)
        print(
            f"{rows:>5} {best['prefill_s']:>10.3f} {best['decode_step_ms']:>15.2f} "
            f"{best['decode_tokens_per_s']:>13.1f} {best['tokens_per_s']:>8.1f}"
        )
    first_token_s = min(bench.run(1, LONG_PROMPT, 1, arguments.budget)["prefill_s"] for _ in range(3))
    print(f"first token of a {LONG_PROMPT}-token prompt: {first_token_s:.3f} s")
    if arguments.json:
        record = {"model": arguments.model.name, "dtype": arguments.dtype, "load_s": load_s, "runs": results}
        arguments.json.write_text(json.dumps({**record, "first_token_s": first_token_s}, indent=1))


def profile(bench: Bench, arguments: argparse.Namespace) -> None:
    """Print how much time of a run each torch operation takes."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    with profiler(activities=[ProfilerActivity.CPU]) as found:
        bench.run(arguments.profile, arguments.prompt, arguments.new, arguments.budget)
    print(found.key_averages().table(sort_by="self_cpu_time_total", row_limit=25))


if __name__ == "__main__":
    main()
