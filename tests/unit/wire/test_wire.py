"""Messages arrive as they were sent, and the checked-in stubs match the .proto files."""

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
    Activation,
    Adapter,
    Cancel,
    FinishReason,
    Grammar,
    LengthPenalty,
    NewSequence,
    RequestFailure,
    SamplingParams,
    StepPlan,
    StepResult,
    StepStats,
    Submit,
    TokenDetail,
    Wanted,
    pack_ids,
)

ROOT = Path(__file__).resolve().parents[3]

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
    repetition_penalty=finite,
    length_penalty=st.none() | st.builds(LengthPenalty, uint32, finite),
    min_new_tokens=uint32,
)
wanted = st.builds(Wanted, st.booleans(), st.booleans(), uint32, st.booleans(), st.booleans())
packed = ids.map(pack_ids)
end_ids = st.frozensets(uint32, max_size=3)
submits = st.builds(
    Submit,
    request_id=uint64,
    prompt_ids=packed,
    max_new_tokens=uint32,
    sampling=sampling,
    wanted=wanted,
    seed=uint64,
    end_ids=end_ids,
    num_virtual=uint32,
    encoder_ids=packed,
    num_encoder_virtual=uint32,
    adapter=st.none() | st.builds(Adapter, st.text(), st.text(), st.binary(), st.text()),
    grammar=st.none() | st.builds(Grammar, st.text(), st.text()),
    cache_salt=st.binary(),
    deadline=st.none() | finite,
)
new_sequences = st.builds(
    NewSequence,
    slot=uint32,
    token_ids=packed,
    prompt_length=uint32,
    num_cached_tokens=uint32,
    sampling=sampling,
    wanted=wanted,
    seed=uint64,
    end_ids=end_ids,
    num_virtual=uint32,
    encoder_ids=packed,
    num_encoder_virtual=uint32,
    cross_blocks=ids,
    num_encoder_tokens=uint32,
    adapter_place=st.integers(-1, 100),
    is_rope_long=st.booleans(),
)


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
        draw(st.lists(st.builds(RequestFailure, uint64, st.text(), st.text()), max_size=2)),
        StepStats(**stats),
    )


@st.composite
def plans(draw):
    rows = draw(st.lists(st.tuples(uint32, uint32, ids, st.booleans()), max_size=4))
    return StepPlan(
        draw(uint64),
        draw(st.lists(new_sequences, max_size=3)),
        *([row[i] for row in rows] for i in range(4)),
        free=draw(ids),
        activate=draw(st.lists(st.builds(Activation, uint32, st.binary()), max_size=2)),
        encode=draw(ids),
        allowance_s=draw(st.floats(0, 1000)),
    )


@given(st.lists(submits, max_size=3), st.lists(uint64, max_size=3))
def test_requests_arrive_as_they_were_sent_and_before_cancels(sent, cancelled):
    message = shard_pb2.ToEngine.FromString(codec.encode_to_engine(sent, cancelled).SerializeToString())

    assert codec.decode_to_engine(message) == [*sent, *map(Cancel, cancelled)]


@given(step_results())
def test_step_results_arrive_as_they_were_sent(result):
    message = shard_pb2.FromEngine.FromString(codec.encode_step_result(result).SerializeToString())

    assert codec.decode_step_result(message) == result


@given(plans())
def test_plans_arrive_as_they_were_sent(plan):
    assert codec.decode_plan(codec.encode_plan(plan)) == plan


@pytest.mark.parametrize(
    ("message", "more"),
    [
        (Submit, set()),
        (Adapter, set()),
        (Grammar, set()),
        (SamplingParams, set()),
        (Wanted, set()),
        (NewSequence, set()),
        (StepPlan, {"new_block_counts"}),
        (StepStats, set()),
    ],
)
def test_every_field_has_one_name_on_both_sides_of_the_wire(message, more):
    names = {field.name for field in dataclasses.fields(message)}

    assert names | more == set(getattr(shard_pb2, message.__name__).DESCRIPTOR.fields_by_name)


def test_checked_in_stubs_match_the_proto_files(tmp_path):
    pytest.importorskip("grpc_tools")
    spec = importlib.util.spec_from_file_location("generate_stubs", ROOT / "scripts" / "generate_stubs.py")
    generate_stubs = importlib.util.module_from_spec(typing.cast("typing.Any", spec))
    spec.loader.exec_module(generate_stubs)

    written = generate_stubs.generate(tmp_path)

    assert {file.name: file.read_text() for file in written} == {
        file.name: file.read_text() for file in generate_stubs.TARGET.glob("*_pb2*.py*")
    }
