"""What `tgis bench engine` measures, and what it costs at least, computed by hand for a model of two layers."""

from __future__ import annotations

import pytest

from tgis_cli.bench.engine.measure import EngineOptions
from tgis_cli.bench.engine.work import Cost, Plan, Work, add_up, cost_of, list_works, read_sizes, why_left_out
from tgis_server.engines.api import Capacity
from tgis_server.engines.door import StepWork
from tgis_server.errors import UsageError

STEP = StepWork(
    weight_bytes=1000, token_flops=200, head_flops=50, layer_kv_bytes=10, layer_pair_flops=4, windows=(None, None)
)


def cost(work: Work, step: StepWork = STEP, *, num_steps: int = 3, chunk_tokens: int = 512) -> Cost:
    return cost_of(work, step, num_steps=num_steps, chunk_tokens=chunk_tokens)


def test_other_ways_to_sample_are_measured_at_the_shortest_context():
    titles = [work.title for work in list_works((1, 8), (256, 128), (512,))]

    assert titles == [
        "prefill, 512 tokens",
        "decode, 1 row at 256",
        "decode, 8 rows at 256",
        "decode, 1 row at 128",
        "decode, 8 rows at 128",
        "decode, 1 row at 128, sampled",
        "decode, 8 rows at 128, sampled",
        "decode, 1 row at 128, details",
        "decode, 8 rows at 128, details",
    ]


def test_a_decode_step_reads_the_weights_once_and_the_keys_of_each_row():
    # Three steps from 6 tokens see 7, 8 and 9 keys: 8 on average.
    assert cost(Work("decode", 2, 6)) == Cost(1000 + 2 * 8 * 20, 2 * (200 + 50 + 8 * 8))


def test_a_step_reads_the_experts_that_its_tokens_are_expected_to_choose():
    step = StepWork(1000, 200, 50, 0, 0, windows=(None,), expert_bytes=800, expert_share=0.25)

    assert cost(Work("decode", 1, 6), step).read_bytes == 1000 + 200
    assert cost(Work("decode", 2, 6), step).read_bytes == 1000 + 200 + 150  # a fourth of what the first leaves


def test_a_window_limits_the_keys_of_its_layer():
    step = StepWork(1000, 200, 50, 10, 4, windows=(5, None))

    assert cost(Work("decode", 1, 6), step) == Cost(1000 + (5 + 8) * 10, 200 + 50 + (5 + 8) * 4)


def test_each_chunk_of_a_prefill_reads_the_weights_and_only_the_last_one_samples():
    # Chunks of 4 and 2: tokens see 1, 2, 3, 4 and 5, 6 keys.
    assert cost(Work("prefill", 1, 6), chunk_tokens=4) == Cost(2 * 1000 + (4 + 6) * 20, 6 * 200 + 50 + 21 * 2 * 4)


def test_ranks_on_one_machine_add_up():
    assert add_up([STEP, STEP]) == StepWork(2000, 400, 100, 20, 8, (None, None))


@pytest.mark.parametrize(
    ("work", "expected"),
    [
        (Work("decode", 2, 63), None),
        (Work("decode", 3, 63), "384 for 256"),
        (Work("decode", 1, 200), "265 positions for 256"),
        (Work("prefill", 1, 255), None),
        (Work("prefill", 1, 256), "257 positions for 256"),
    ],
)
def test_a_work_without_room_is_left_out_with_the_option_that_makes_room(work: Work, expected: str | None):
    reason = why_left_out(work, Capacity(num_blocks=16, block_size=16, max_sequence_length=256))

    if expected is None:
        assert reason is None
    else:
        assert reason is not None
        numbers = [word.rstrip(",") for word in reason.split("left out")[1].split() if word[0].isdigit()]
        assert numbers == [word for word in expected.split() if word.isdigit()]
        assert ("--max-sequence-length" if "positions" in expected else "--kv-cache-memory") in reason


def test_a_plan_reaches_the_leader_whole():
    plan = Plan((Work("decode", 2, 8, "sampled"), Work("prefill", 1, 16)), rounds=3)

    assert Plan.from_dict(plan.as_dict()) == plan


@pytest.mark.parametrize("sizes", [((), (8,), ()), ((1,), (), ())])
def test_a_plan_without_any_work_is_refused(sizes: tuple[tuple[int, ...], ...]):
    with pytest.raises(UsageError, match="nothing to measure"):
        EngineOptions(*sizes, rounds=1).make_plan()


def test_sizes_are_read_in_their_order_and_may_be_none():
    assert read_sizes(" 8, 1", "--rows") == (8, 1)
    assert read_sizes("", "--prefill") == ()


@pytest.mark.parametrize("text", ["0", "1,", "eight", "1.5", "-1"])
def test_what_is_no_list_of_sizes_is_refused(text: str):
    with pytest.raises(UsageError, match=r"--rows is .* such as 1,8,32"):
        read_sizes(text, "--rows")
