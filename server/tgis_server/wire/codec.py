"""Messages of ``messages.py`` to protobuf and back. Values pass unchanged; validation happened at the public door."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice

from tgis_server.wire import shard_pb2 as pb
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

STATS_FIELDS = tuple(field.name for field in pb.StepStats.DESCRIPTOR.fields)
FINISH_REASONS = tuple(FinishReason)


# Session: requests in


def encode_to_engine(submits: Iterable[Submit], cancels: Iterable[int]) -> pb.ToEngine:
    return pb.ToEngine(submits=[encode_submit(submit) for submit in submits], cancels=cancels)


def decode_to_engine(message: pb.ToEngine) -> list[Submit | Cancel]:
    """Submits first: a cancel in the same message may be meant for one of them."""
    return [*map(decode_submit, message.submits), *map(Cancel, message.cancels)]


def encode_submit(submit: Submit) -> pb.Submit:
    return pb.Submit(
        request_id=submit.request_id,
        prompt_ids=submit.prompt_ids,
        max_new_tokens=submit.max_new_tokens,
        sampling=encode_sampling(submit.sampling),
        details=encode_wanted(submit.details),
        adapter_id=submit.adapter_id,
        deadline=submit.deadline,
    )


def decode_submit(message: pb.Submit) -> Submit:
    return Submit(
        request_id=message.request_id,
        prompt_ids=list(message.prompt_ids),
        max_new_tokens=message.max_new_tokens,
        sampling=decode_sampling(message.sampling),
        details=decode_wanted(message.details),
        adapter_id=message.adapter_id,
        deadline=message.deadline if message.HasField("deadline") else None,
    )


def encode_sampling(sampling: SamplingParams) -> pb.SamplingParams:
    penalty = sampling.length_penalty
    return pb.SamplingParams(
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        typical_p=sampling.typical_p,
        seed=sampling.seed,
        repetition_penalty=sampling.repetition_penalty,
        min_new_tokens=sampling.min_new_tokens,
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
    return SamplingParams(
        temperature=message.temperature,
        top_k=message.top_k,
        top_p=message.top_p,
        typical_p=message.typical_p,
        seed=message.seed,
        repetition_penalty=message.repetition_penalty,
        length_penalty=penalty,
        min_new_tokens=message.min_new_tokens,
    )


def encode_wanted(details: Details) -> pb.Details:
    return pb.Details(
        logprobs=details.logprobs,
        ranks=details.ranks,
        top_n=details.top_n,
        generated_tokens=details.generated_tokens,
        input_tokens=details.input_tokens,
    )


def decode_wanted(message: pb.Details) -> Details:
    return Details(
        logprobs=message.logprobs,
        ranks=message.ranks,
        top_n=message.top_n,
        generated_tokens=message.generated_tokens,
        input_tokens=message.input_tokens,
    )


# Session: steps out


def encode_step_result(result: StepResult) -> pb.FromEngine:
    message = pb.FromEngine(
        request_ids=result.request_ids,
        token_ids=result.token_ids,
        finish_reasons=result.finish_reasons,
        stats=pb.StepStats(**{name: getattr(result.stats, name) for name in STATS_FIELDS}),
        failures=[pb.Failure(request_id=f.request_id, status=f.status, text=f.text) for f in result.failures],
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
        failures=[Failure(f.request_id, f.status, f.text) for f in message.failures],
        stats=StepStats(**{name: getattr(message.stats, name) for name in STATS_FIELDS}),
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
        slots=plan.slots,
        num_tokens=plan.num_tokens,
        new_block_counts=[len(blocks) for blocks in plan.new_blocks],
        new_blocks=[block for blocks in plan.new_blocks for block in blocks],
        sample=plan.sample,
        free=plan.free,
        allowance_s=plan.allowance_s,
    )
    for sequence in plan.new:
        message.new.add(
            slot=sequence.slot,
            token_ids=sequence.token_ids,
            prompt_length=sequence.prompt_length,
            num_cached_tokens=sequence.num_cached_tokens,
            sampling=encode_sampling(sequence.sampling),
            details=encode_wanted(sequence.details),
            adapter_id=sequence.adapter_id,
            is_rope_long=sequence.is_rope_long,
        )
    data: bytes = message.SerializeToString()
    return data


def decode_plan(data: bytes) -> StepPlan:
    message = pb.StepPlan.FromString(data)
    blocks = iter(message.new_blocks)
    return StepPlan(
        step=message.step,
        new=[
            NewSequence(
                slot=sequence.slot,
                token_ids=list(sequence.token_ids),
                prompt_length=sequence.prompt_length,
                num_cached_tokens=sequence.num_cached_tokens,
                sampling=decode_sampling(sequence.sampling),
                details=decode_wanted(sequence.details),
                adapter_id=sequence.adapter_id,
                is_rope_long=sequence.is_rope_long,
            )
            for sequence in message.new
        ],
        slots=list(message.slots),
        num_tokens=list(message.num_tokens),
        new_blocks=[list(islice(blocks, count)) for count in message.new_block_counts],
        sample=list(message.sample),
        free=list(message.free),
        allowance_s=message.allowance_s,
    )
