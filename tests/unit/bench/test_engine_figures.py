"""Figures of the engine beside the limits of a machine, computed by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from tgis_cli.bench.engine.measure import doubt_limits, make_figures
from tgis_cli.bench.engine.work import Measured, Work
from tgis_cli.bench.limits import Bandwidth, Limits
from tgis_server.engines.door import StepWork
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
