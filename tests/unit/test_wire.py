"""What crosses process borders arrives as it was sent, and the checked-in stubs belong to the .proto files."""

from __future__ import annotations

import dataclasses
import importlib.util
import typing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tgis_server.wire import codec, shard_pb2
from tgis_server.wire.messages import (
    Cancel,
    Details,
    Failure,
    FinishReason,
    LengthPenalty,
    NewSequence,
    SamplingParams,
    StepPlan,
    StepResult,
    StepStats,
    Submit,
    TokenDetail,
)

ROOT = Path(__file__).resolve().parents[2]

uint32, uint64 = st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1)
ids = st.lists(uint32, max_size=5)
finite = st.floats(0, 1e6)
float32 = st.floats(-100, 0, width=32)
sampling = st.builds(
    SamplingParams,
    temperature=finite,
    top_k=uint32,
    top_p=finite,
    typical_p=finite,
    seed=uint64,
    repetition_penalty=finite,
    length_penalty=st.none() | st.builds(LengthPenalty, uint32, finite),
    min_new_tokens=uint32,
)
wanted = st.builds(Details, st.booleans(), st.booleans(), uint32, st.booleans(), st.booleans())
submits = st.builds(Submit, uint64, ids, uint32, sampling, wanted, st.text(), st.none() | finite)


@st.composite
def token_details(draw):
    count = draw(st.integers(0, 3))
    tops = draw(st.lists(st.tuples(uint32, float32), min_size=count, max_size=count))
    return TokenDetail(draw(float32), draw(uint32), tuple(i for i, _ in tops), tuple(p for _, p in tops))


@st.composite
def step_results(draw):
    columns = draw(st.lists(st.tuples(uint64, st.integers(-1, 2**31 - 1), st.sampled_from(FinishReason)), max_size=4))
    stats = {
        field.name: draw({"int": uint32, "float": finite, "bool": st.booleans()}[field.type])
        for field in dataclasses.fields(StepStats)
    }
    return StepResult(
        [column[0] for column in columns],
        [column[1] for column in columns],
        [column[2] for column in columns],
        draw(st.dictionaries(st.integers(0, 3), token_details(), max_size=3)),
        draw(st.lists(st.tuples(uint64, st.lists(token_details(), max_size=3)), max_size=2)),
        draw(st.lists(st.tuples(uint64, finite), max_size=2)),
        draw(st.lists(st.builds(Failure, uint64, st.text(), st.text()), max_size=2)),
        StepStats(**stats),
    )


@st.composite
def plans(draw):
    rows = draw(st.lists(st.tuples(uint32, uint32, ids, st.booleans()), max_size=4))
    new = st.builds(NewSequence, uint32, ids, uint32, uint32, sampling, wanted, st.text(), st.booleans())
    return StepPlan(
        draw(uint64),
        draw(st.lists(new, max_size=3)),
        *([row[i] for row in rows] for i in range(4)),
        draw(ids),
        draw(st.floats(0, 1000)),
    )


@given(st.lists(submits, max_size=3), st.lists(uint64, max_size=3))
def test_requests_and_cancels_arrive_as_they_were_sent_requests_first(sent, cancelled):
    message = shard_pb2.ToEngine.FromString(codec.encode_to_engine(sent, cancelled).SerializeToString())

    assert codec.decode_to_engine(message) == [*sent, *map(Cancel, cancelled)]


@given(step_results())
def test_step_results_arrive_as_they_were_sent(result):
    message = shard_pb2.FromEngine.FromString(codec.encode_step_result(result).SerializeToString())

    assert codec.decode_step_result(message) == result


@given(plans())
def test_plans_arrive_as_they_were_sent(plan):
    assert codec.decode_plan(codec.encode_plan(plan)) == plan


def test_every_statistic_has_a_place_on_the_wire():
    names = {field.name for field in dataclasses.fields(StepStats)}

    assert names == set(codec.STATS_FIELDS)


def test_checked_in_stubs_are_what_the_proto_files_give(tmp_path):
    pytest.importorskip("grpc_tools")
    spec = importlib.util.spec_from_file_location("generate_stubs", ROOT / "scripts" / "generate_stubs.py")
    generate_stubs = importlib.util.module_from_spec(typing.cast("typing.Any", spec))
    spec.loader.exec_module(generate_stubs)

    written = generate_stubs.generate(tmp_path)

    assert {file.name: file.read_text() for file in written} == {
        file.name: file.read_text() for file in generate_stubs.TARGET.glob("*_pb2*.py*")
    }
