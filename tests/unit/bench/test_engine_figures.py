"""Figures of the engine beside the limits of a machine, computed by hand."""

from __future__ import annotations

import contextlib
import dataclasses
import re
from pathlib import Path

import pytest

from tgis_cli.bench.engine.measure import EngineOptions, check_rows, doubt_limits, make_figures
from tgis_cli.bench.engine.work import Measured, Work
from tgis_cli.bench.limits import Bandwidth, Limits
from tgis_cli.machine import Machine
from tgis_cli.model_files.cache.model_dir import DEMO_MODEL_DIR
from tgis_server.engines.catalogue import get_engine
from tgis_server.engines.door import ModelSummary, StepWork
from tgis_server.errors import UsageError
from tgis_server.options import ServeConfig
from tgis_server.run import Run

STEP = StepWork(
    weight_bytes=1000, token_flops=200, head_flops=50, layer_kv_bytes=10, layer_pair_flops=4, windows=(None, None)
)
DECODE = Measured(Work("decode", 2, 6), steps=3, seconds=[0.5, 0.5])  # reads 1,320 bytes, computes 628 operations
RUN = Run(
    config=ServeConfig(),
    run_dir=Path("run"),
    model_id="model",
    model_dir=Path("model"),
    engine="native",
    device="cpu",
    dtype="float32",
    num_shard=1,
    max_sequence_length=512,
    is_max_sequence_length_explicit=False,
    max_batch_tokens=64,
    tokenization_workers=1,
)
MACHINE = Machine((), (), has_bf16=False, free_bytes=4 << 30, limit_bytes=None)
REHEARSED = ModelSummary("decoder", "", "", 0, None, (), None, None, (), {})


def make_limits(flops_per_s: float) -> Limits:
    return Limits(Bandwidth(2000.0, 5280.0, 2), {"float32": flops_per_s})


def test_each_time_is_compared_with_both_limits():
    figures = {each.name: each for each in make_figures([DECODE], STEP, make_limits(6280.0), RUN)}

    assert {name: each.estimate.value for name, each in figures.items()} == {
        "time": 0.5,
        "tokens_per_s": 4.0,
        "memory_share": pytest.approx(0.5),
        "compute_share": pytest.approx(0.2),
    }
    assert {each.group for each in figures.values()} == {"decode, 2 rows at 6"}


def test_a_rehearsal_has_no_limits():
    assert [each.name for each in make_figures([DECODE], None, None, RUN)] == ["time", "tokens_per_s"]


@pytest.mark.parametrize(("flops_per_s", "is_doubted"), [(6280.0, False), (628.0, True)])
def test_products_faster_than_their_limit_are_doubted(flops_per_s: float, is_doubted: bool):
    figures = list(make_figures([DECODE], STEP, make_limits(flops_per_s), RUN))

    assert bool(list(doubt_limits(figures))) == is_doubted


@pytest.mark.parametrize(
    ("rows", "contexts", "said"),
    [
        ((1, 315), (500, 128), None),
        (
            (99_999_999,),
            (500, 128),
            "--rows is 99,999,999, but the KV cache has room for at most 315 rows of 128",
        ),
        ((1,), (65_536,), "--context is 65,536, but the KV cache has room for no row of 65,536 tokens"),
        ((), (65_536,), None),
    ],
)
def test_rows_without_room_are_refused_before_anything_is_loaded(rows, contexts, said: str | None):
    expected = pytest.raises(UsageError, match=said) if said else contextlib.nullcontext()
    with expected:
        check_rows(RUN, MACHINE, REHEARSED, EngineOptions(rows, contexts, (), rounds=1))


def test_the_most_rows_that_a_message_names_do_fit():
    run = dataclasses.replace(RUN, model_id="demo", model_dir=DEMO_MODEL_DIR)
    summary = get_engine("native").door.inspect(DEMO_MODEL_DIR, 1)

    with pytest.raises(UsageError) as refused:
        check_rows(run, MACHINE, summary, EngineOptions((10**8,), (8,), (), rounds=1))
    most = int(re.search("at most ([0-9,]+) rows", str(refused.value))[1].replace(",", ""))

    check_rows(run, MACHINE, summary, EngineOptions((most,), (8,), (), rounds=1))
    with pytest.raises(UsageError, match=f"at most {most:,} rows"):
        check_rows(run, MACHINE, summary, EngineOptions((most + 1,), (8,), (), rounds=1))
