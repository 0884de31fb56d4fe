"""Converts the messages of ``messages.py`` to protobuf and back. The public door has already validated them.

Fields have the same name on both sides and are copied by name unless they need conversion. Token ids are sent as bytes:
a repeated field would create one Python object per number.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any

from google.protobuf.message import Message

from tgis_server.wire import shard_pb2 as pb
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
    TokenIds,
    Wanted,
)

FINISH_REASONS = tuple(FinishReason)


def encode_ids(ids: TokenIds) -> bytes:
    """Encode token ids in this machine's byte order, which all processes share."""
    return ids.tobytes()


def decode_ids(data: bytes) -> TokenIds:
    ids: TokenIds = array("I")
    ids.frombytes(data)
    return ids


def _names(message: type[Message], *, without: Iterable[str] = ()) -> tuple[str, ...]:
    """The fields of a message that need no conversion."""
    return tuple(field.name for field in message.DESCRIPTOR.fields if field.name not in without)


STATS = _names(pb.StepStats)
WANTED = _names(pb.Wanted)
SAMPLING = _names(pb.SamplingParams, without=["length_penalty"])
ADAPTER = _names(pb.Adapter)
GRAMMAR = _names(pb.Grammar)
SUBMIT = ("request_id", "max_new_tokens", "seed", "num_virtual", "num_encoder_virtual", "cache_salt")
NEW_SEQUENCE = (
    *("slot", "prompt_length", "num_cached_tokens", "seed", "num_virtual", "num_encoder_virtual"),
    *("num_encoder_tokens", "adapter_place", "is_rope_long"),
)


def _copy(source: Any, names: tuple[str, ...]) -> dict[str, Any]:
    return {name: getattr(source, name) for name in names}


# Session: requests in


def encode_to_engine(submits: Iterable[Submit], cancels: Iterable[int]) -> pb.ToEngine:
    return pb.ToEngine(submits=[encode_submit(submit) for submit in submits], cancels=cancels)


def decode_to_engine(message: pb.ToEngine) -> list[Submit | Cancel]:
    """Submits come first: a cancel in the same message may refer to one of them."""
    return [*map(decode_submit, message.submits), *map(Cancel, message.cancels)]


def encode_submit(submit: Submit) -> pb.Submit:
    return pb.Submit(
        **_copy(submit, SUBMIT),
        prompt_ids=encode_ids(submit.prompt_ids),
        encoder_ids=encode_ids(submit.encoder_ids),
        sampling=encode_sampling(submit.sampling),
        wanted=pb.Wanted(**_copy(submit.wanted, WANTED)),
        end_ids=submit.end_ids,
        adapter=encode_adapter(submit.adapter) if submit.adapter else None,
        grammar=pb.Grammar(**_copy(submit.grammar, GRAMMAR)) if submit.grammar else None,
        deadline=submit.deadline,
    )


def decode_submit(message: pb.Submit) -> Submit:
    return Submit(
        **_copy(message, SUBMIT),
        prompt_ids=decode_ids(message.prompt_ids),
        encoder_ids=decode_ids(message.encoder_ids),
        sampling=decode_sampling(message.sampling),
        wanted=Wanted(**_copy(message.wanted, WANTED)),
        end_ids=frozenset(message.end_ids),
        adapter=decode_adapter(message.adapter) if message.HasField("adapter") else None,
        grammar=Grammar(**_copy(message.grammar, GRAMMAR)) if message.HasField("grammar") else None,
        deadline=message.deadline if message.HasField("deadline") else None,
    )


def encode_adapter(adapter: Adapter) -> pb.Adapter:
    return pb.Adapter(**_copy(adapter, ADAPTER))


def decode_adapter(message: pb.Adapter) -> Adapter:
    return Adapter(**_copy(message, ADAPTER))


def encode_sampling(sampling: SamplingParams) -> pb.SamplingParams:
    penalty = sampling.length_penalty
    return pb.SamplingParams(
        **_copy(sampling, SAMPLING),
        length_penalty=pb.SamplingParams.LengthPenalty(
            start_index=penalty.start_index, decay_factor=penalty.decay_factor
        )
        if penalty
        else None,
    )


def decode_sampling(message: pb.SamplingParams) -> SamplingParams:
    penalty = None
    if message.HasField("length_penalty"):
        penalty = LengthPenalty(message.length_penalty.start_index, message.length_penalty.decay_factor)
    return SamplingParams(**_copy(message, SAMPLING), length_penalty=penalty)


# Session: steps out


def encode_step_result(result: StepResult) -> pb.FromEngine:
    message = pb.FromEngine(
        request_ids=result.request_ids,
        token_ids=result.token_ids,
        finish_reasons=result.finish_reasons,
        stats=pb.StepStats(**_copy(result.stats, STATS)),
        failures=[pb.RequestFailure(request_id=f.request_id, status=f.status, text=f.text) for f in result.failures],
    )
    if result.details:
        message.detail_columns.extend(result.details)
        message.details.CopyFrom(encode_details(list(result.details.values())))
    for request_id, details in result.prompt_details:
        message.prompt_details.add(request_id=request_id, details=encode_details(details))
    for request_id, started_at in result.started:
        message.started_ids.append(request_id)
        message.started_at_s.append(started_at)
    return message


def decode_step_result(message: pb.FromEngine) -> StepResult:
    return StepResult(
        request_ids=list(message.request_ids),
        token_ids=list(message.token_ids),
        finish_reasons=[FINISH_REASONS[reason] for reason in message.finish_reasons],
        details=dict(zip(message.detail_columns, decode_details(message.details), strict=True)),
        prompt_details=[(group.request_id, decode_details(group.details)) for group in message.prompt_details],
        started=list(zip(message.started_ids, message.started_at_s, strict=True)),
        failures=[RequestFailure(f.request_id, f.status, f.text) for f in message.failures],
        stats=StepStats(**_copy(message.stats, STATS)),
    )


def encode_details(details: Sequence[TokenDetail]) -> pb.TokenDetails:
    message = pb.TokenDetails()
    for detail in details:
        message.logprobs.append(detail.logprob)
        message.ranks.append(detail.rank)
        message.top_counts.append(len(detail.top_ids))
        message.top_ids.extend(detail.top_ids)
        message.top_logprobs.extend(detail.top_logprobs)
    return message


def decode_details(message: pb.TokenDetails) -> list[TokenDetail]:
    top_ids, top_logprobs = iter(message.top_ids), iter(message.top_logprobs)
    return [
        TokenDetail(logprob, rank, tuple(islice(top_ids, count)), tuple(islice(top_logprobs, count)))
        for logprob, rank, count in zip(message.logprobs, message.ranks, message.top_counts, strict=True)
    ]


# Plans, from the leader to the followers


def encode_plan(plan: StepPlan) -> bytes:
    message = pb.StepPlan(
        step=plan.step,
        free=plan.free,
        activate=[pb.Activation(place=one.place, digest=one.digest) for one in plan.activate],
        new=[encode_new_sequence(sequence) for sequence in plan.new],
        slots=plan.slots,
        num_tokens=plan.num_tokens,
        new_block_counts=[len(blocks) for blocks in plan.new_blocks],
        new_blocks=[block for blocks in plan.new_blocks for block in blocks],
        sample=plan.sample,
        encode=plan.encode,
        allowance_s=plan.allowance_s,
    )
    data: bytes = message.SerializeToString()
    return data


def encode_new_sequence(sequence: NewSequence) -> pb.NewSequence:
    return pb.NewSequence(
        **_copy(sequence, NEW_SEQUENCE),
        token_ids=encode_ids(sequence.token_ids),
        encoder_ids=encode_ids(sequence.encoder_ids),
        sampling=encode_sampling(sequence.sampling),
        wanted=pb.Wanted(**_copy(sequence.wanted, WANTED)),
        end_ids=sequence.end_ids,
        cross_blocks=sequence.cross_blocks,
    )


def decode_plan(data: bytes) -> StepPlan:
    """
    Raises:
        DecodeError, ValueError: the bytes are not a plan.
    """
    message = pb.StepPlan.FromString(data)
    if sum(message.new_block_counts) != len(message.new_blocks):
        raise ValueError("new_block_counts do not add up to new_blocks")
    blocks = iter(message.new_blocks)
    return StepPlan(
        step=message.step,
        free=list(message.free),
        activate=[Activation(one.place, one.digest) for one in message.activate],
        new=[decode_new_sequence(sequence) for sequence in message.new],
        slots=list(message.slots),
        num_tokens=list(message.num_tokens),
        new_blocks=[list(islice(blocks, count)) for count in message.new_block_counts],
        sample=list(message.sample),
        encode=list(message.encode),
        allowance_s=message.allowance_s,
    )


def decode_new_sequence(message: pb.NewSequence) -> NewSequence:
    return NewSequence(
        **_copy(message, NEW_SEQUENCE),
        token_ids=decode_ids(message.token_ids),
        encoder_ids=decode_ids(message.encoder_ids),
        sampling=decode_sampling(message.sampling),
        wanted=Wanted(**_copy(message.wanted, WANTED)),
        end_ids=frozenset(message.end_ids),
        cross_blocks=list(message.cross_blocks),
    )
