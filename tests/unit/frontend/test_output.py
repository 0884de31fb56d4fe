"""From tokens to messages: frames of a stream, the unary answer, stop reasons, token details."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

import vocabularies
from tgis_server.errors import GenerationFailed, OutOfMemory, Unavailable
from tgis_server.frontend.grpc_api.messages import render_part
from tgis_server.frontend.output import Output, TextSettings
from tgis_server.frontend.text import Detokenizer, PieceDecoder, StopSequences
from tgis_server.frontend.validation import GenerationParams
from tgis_server.wire import generation_pb2 as pb
from tgis_server.wire.messages import (
    NO_TOKEN,
    FinishReason,
    RequestFailure,
    SamplingParams,
    Submit,
    TokenDetail,
    Wanted,
    pack_ids,
)

GO_ON, MAX, EOS = FinishReason.NOT_FINISHED, FinishReason.MAX_TOKENS, FinishReason.EOS_TOKEN
PARAMS = GenerationParams(
    sampling=SamplingParams(),
    seed=None,
    max_new_tokens=20,
    stop=None,
    include_stop_sequence=True,
    time_limit_s=None,
    truncate_input_tokens=0,
    wanted=Wanted(),
    input_text=False,
)
Frame = pb.GenerationResponse
Token = pb.TokenInfo


def output_of(
    library: Tokenizer | None = None,
    *,
    seed: int = 0,
    prompt: tuple[int, ...] = (1, 2),
    request_id: int = 1,
    output_special_tokens: bool = False,
    **params: object,
) -> Output:
    """An output with a vocabulary whose token 7 is the word t7, unless another one is given."""
    library = library or vocabularies.words()
    pieces = PieceDecoder(library, output_special_tokens=output_special_tokens)
    allowed = params.pop("allowed", params.get("max_new_tokens", PARAMS.max_new_tokens))
    if sequences := params.pop("stop_sequences", ()):
        params["stop"] = StopSequences(sequences)
    given = replace(PARAMS, **params)
    submit = Submit(request_id, pack_ids(prompt), allowed, sampling=given.sampling, wanted=given.wanted, seed=seed)
    settings = TextSettings(pieces, lambda token_id: library.id_to_token(token_id) or "")
    return Output(submit, given, settings, lambda _: None, echo="the input" if given.input_text else "")


def first_frame(output: Output) -> Frame:
    return render_part(output.first_part())


def input_frame(output: Output) -> Frame:
    return render_part(output.input_part())


def take_frames(output: Output) -> list[Frame]:
    return [render_part(part) for part in iter(output.take_part, None)]


def answer_of(output: Output) -> Frame:
    return render_part(output.whole())


def push(output: Output, *tokens: int, end: FinishReason = GO_ON) -> None:
    """Push tokens one after the other, the last of them with ``end``."""
    for index, token in enumerate(tokens):
        output.on_token(token, end if index == len(tokens) - 1 else GO_ON, None, now=0.0)


def test_a_stream_begins_with_the_facts_about_the_input():
    assert first_frame(output_of(seed=5)) == Frame(input_token_count=2, seed=5)
    assert first_frame(output_of(input_text=True)) == Frame(input_token_count=2, text="the input")


def test_each_token_gives_a_frame_and_the_last_has_the_stop_reason():
    output = output_of(seed=5)

    push(output, 7)
    first = take_frames(output)
    push(output, 8, end=MAX)
    last = take_frames(output)

    assert first == [Frame(text=" t7", generated_token_count=1)]
    assert last == [Frame(text=" t8", generated_token_count=2, stop_reason="MAX_TOKENS", seed=5)]


def test_unfetched_text_is_merged_into_one_frame():
    output = output_of()

    push(output, 7, 8, 9)

    assert take_frames(output) == [Frame(text=" t7 t8 t9", generated_token_count=3)]
    assert take_frames(output) == []


def test_generated_tokens_are_never_merged_into_one_frame():
    output = output_of(wanted=Wanted(generated_tokens=True))

    push(output, 7, 8, 9, end=MAX)

    assert take_frames(output) == [
        Frame(text=" t7", generated_token_count=1, tokens=[Token(text="t7")]),
        Frame(text=" t8", generated_token_count=2, tokens=[Token(text="t8")]),
        Frame(text=" t9", generated_token_count=3, tokens=[Token(text="t9")], stop_reason="MAX_TOKENS"),
    ]


def test_a_token_without_text_gives_no_frame_but_counts():
    output = output_of(vocabularies.byte_level())
    [start, rest, special] = map(vocabularies.byte_level().token_to_id, ("Ã", "©", "<s>"))

    push(output, start, special)
    nothing = take_frames(output)
    push(output, rest)

    assert nothing == []
    assert take_frames(output) == [Frame(text="é", generated_token_count=3)]


def test_a_token_without_text_gives_a_frame_if_tokens_were_requested():
    library = vocabularies.byte_level()
    output = output_of(library, wanted=Wanted(generated_tokens=True))

    push(output, library.token_to_id("Ã"))

    assert take_frames(output) == [Frame(generated_token_count=1, tokens=[Token(text="Ã")])]


def test_the_last_frame_is_sent_even_if_it_is_empty():
    output = output_of(vocabularies.byte_level())

    push(output, 1, end=EOS)

    assert take_frames(output) == [Frame(generated_token_count=1, stop_reason="EOS_TOKEN")]


def test_an_end_without_a_token_gives_a_last_frame_with_the_count():
    output = output_of(wanted=Wanted(generated_tokens=True))

    push(output, 7)
    take_frames(output)
    push(output, NO_TOKEN, end=FinishReason.TIME_LIMIT)

    assert take_frames(output) == [Frame(generated_token_count=1, stop_reason="TIME_LIMIT")]


def test_a_request_that_timed_out_in_the_queue_still_has_its_echo_and_seed():
    output = output_of(seed=5, input_text=True, wanted=Wanted(input_tokens=True))

    push(output, NO_TOKEN, end=FinishReason.TIME_LIMIT)

    assert answer_of(output) == Frame(input_token_count=2, text="the input", seed=5, stop_reason="TIME_LIMIT")


def test_a_final_eos_never_shows_in_the_text_even_if_special_tokens_do():
    output = output_of(vocabularies.byte_fallback(), output_special_tokens=True)

    push(output, 1, 2, end=EOS)

    assert (answer_of(output).text, output.num_generated) == ("<s>", 2)


def test_the_unary_answer_holds_everything():
    output = output_of(seed=5, input_text=True, wanted=Wanted(generated_tokens=True))

    push(output, 7, 8, end=MAX)

    assert answer_of(output) == Frame(
        input_token_count=2,
        generated_token_count=2,
        text="the input t7 t8",
        stop_reason="MAX_TOKENS",
        seed=5,
        tokens=[Token(text="t7"), Token(text="t8")],
    )


def test_reaching_a_limit_lowered_by_the_context_is_a_token_limit():
    output = output_of(max_new_tokens=20, allowed=2)

    push(output, 7, 8, end=MAX)

    assert answer_of(output).stop_reason == pb.TOKEN_LIMIT


# Stop sequences


def test_a_stop_sequence_ends_the_output_and_stays_in_it():
    output = output_of(stop_sequences=("t8",))

    push(output, 7, 8)

    assert answer_of(output) == Frame(
        input_token_count=2, generated_token_count=2, text=" t7 t8", stop_reason="STOP_SEQUENCE", stop_sequence="t8"
    )


def test_an_excluded_stop_sequence_is_cut_off_and_its_tokens_still_count():
    output = output_of(stop_sequences=("7 t8",), include_stop_sequence=False, wanted=Wanted(generated_tokens=True))

    push(output, 7, 8)

    assert take_frames(output) == [
        Frame(text=" t", generated_token_count=1, tokens=[Token(text="t7")]),
        Frame(
            generated_token_count=2,
            tokens=[Token(text="t8")],
            stop_reason="STOP_SEQUENCE",
            stop_sequence="7 t8",
        ),
    ]


def test_a_stop_sequence_completed_by_the_last_allowed_token_counts():
    output = output_of(stop_sequences=("t8",), include_stop_sequence=False)

    push(output, 7, 8, end=MAX)

    assert (answer_of(output).text, output.stop_reason) == (" t7 ", FinishReason.STOP_SEQUENCE)


def test_a_deadline_takes_precedence_over_a_stop_sequence_and_cuts_nothing():
    output = output_of(stop_sequences=("t8",), include_stop_sequence=False)

    push(output, 7, 8, end=FinishReason.TIME_LIMIT)

    assert answer_of(output) == Frame(
        input_token_count=2, generated_token_count=2, text=" t7 t8", stop_reason="TIME_LIMIT"
    )


def test_text_held_back_for_a_stop_sequence_is_sent_at_the_end():
    output = output_of(stop_sequences=("t8 t9",), include_stop_sequence=False)

    push(output, 7, 8, end=MAX)

    assert take_frames(output) == [Frame(text=" t7 t8", generated_token_count=2, stop_reason="MAX_TOKENS")]


def test_stop_sequences_are_ignored_before_min_new_tokens():
    output = output_of(stop_sequences=("t7", "t9"), sampling=SamplingParams(min_new_tokens=3))

    push(output, 7, 8, 9)

    answer = answer_of(output)
    assert (answer.text, answer.stop_sequence) == (" t7 t8 t9", "t9")


# Details


def test_generated_tokens_have_exactly_the_requested_details():
    detail = TokenDetail(logprob=-0.5, rank=2, top_ids=(9, 7, 8), top_logprobs=(-0.5, -0.25, -0.5))
    everything = Wanted(logprobs=True, ranks=True, top_n=3, generated_tokens=True)
    with_everything, with_top_only = (
        output_of(wanted=everything),
        output_of(wanted=Wanted(top_n=3, generated_tokens=True)),
    )

    with_everything.on_token(7, MAX, detail, 0.0)
    with_top_only.on_token(7, MAX, detail, 0.0)

    top = Token.TopToken
    assert list(answer_of(with_everything).tokens) == [
        Token(
            text="t7",
            logprob=-0.5,
            rank=2,
            top_tokens=[top(text="t7", logprob=-0.25), top(text="t8", logprob=-0.5), top(text="t9", logprob=-0.5)],
        )
    ]
    assert list(answer_of(with_top_only).tokens) == [
        Token(text="t7", top_tokens=[top(text="t7"), top(text="t8"), top(text="t9")])
    ]


def test_input_tokens_come_in_a_separate_frame_before_the_first_token():
    output = output_of(prompt=(4, 5, 6), wanted=Wanted(ranks=True, input_tokens=True))

    output.on_prompt_details([TokenDetail(rank=3)])
    was_due = output.is_input_part_due
    output.on_prompt_details([TokenDetail(rank=1)])
    push(output, 7)

    assert (was_due, output.is_input_part_due) == (False, True)
    assert input_frame(output) == Frame(
        input_token_count=3,
        input_tokens=[Token(text="t4"), Token(text="t5", rank=3), Token(text="t6", rank=1)],
    )
    assert take_frames(output) == [Frame(text=" t7", generated_token_count=1)]


def test_the_first_input_token_has_the_logprob_nan():
    output = output_of(prompt=(4, 5), wanted=Wanted(logprobs=True, ranks=True, input_tokens=True))

    output.on_prompt_details([TokenDetail(logprob=-1.5, rank=2)])
    push(output, 7, end=MAX)

    first, second = answer_of(output).input_tokens
    assert (first.text, math.isnan(first.logprob), first.rank) == ("t4", True, 0)
    assert second == Token(text="t5", logprob=-1.5, rank=2)


def test_without_logprobs_the_first_input_token_has_no_logprob_either():
    output = output_of(prompt=(4,), wanted=Wanted(input_tokens=True))

    push(output, 7, end=MAX)

    assert list(answer_of(output).input_tokens) == [Token(text="t4")]


# Failures


@pytest.mark.parametrize(
    ("failure", "num_tokens", "kind", "text"),
    [
        (RequestFailure(1, "RESOURCE_EXHAUSTED", "GPU out of memory"), 0, OutOfMemory, "GPU out of memory"),
        (RequestFailure(1, "RESOURCE_EXHAUSTED", "GPU out of memory"), 1, OutOfMemory, "GPU out of memory"),
        (RequestFailure(1, "INTERNAL", "Token decoding error"), 0, GenerationFailed, "Token decoding error"),
        (RequestFailure(1, "INTERNAL", "bad"), 2, GenerationFailed, "Error after generating 2 tokens: bad"),
        (RequestFailure(1, "UNAVAILABLE", "gone"), 2, Unavailable, "gone"),
    ],
)
def test_a_failure_has_the_contracts_text(failure, num_tokens, kind, text):
    output = output_of()
    push(output, *[7] * num_tokens)

    output.on_failure(failure)

    assert type(output.error) is kind
    assert str(output.error) == f"Request failed during generation: {text}"


def test_a_failure_after_the_end_changes_nothing():
    output = output_of()
    push(output, 7, end=MAX)

    output.fail(Unavailable("gone"))

    assert output.error is None


# Streams and unary answers agree


@dataclass(frozen=True)
class Run:
    """Tokens of a vocabulary, how the engine ends them, and when the client of a stream fetches frames."""

    library: Tokenizer
    params: dict[str, object]
    ids: list[int]
    end: FinishReason
    fetches: list[bool]

    @property
    def parts(self) -> list[str]:
        """The text of each token."""
        special = self.params["output_special_tokens"]
        detokenizer = Detokenizer(PieceDecoder(self.library, output_special_tokens=special))
        shown = self.ids[:-1] if self.end is EOS else self.ids
        return [detokenizer.push(token) for token in shown] + [""] * (len(self.ids) - len(shown))

    def expected(self) -> tuple[str, int, str]:
        """The text, number of tokens and stop sequence, found character by character as the contract says."""
        text, count = "", 0
        for count, part in enumerate(self.parts, start=1):
            is_late = self.end is FinishReason.TIME_LIMIT and count == len(self.ids)
            for character in part:
                text += character
                found = max(filter(text.endswith, self.params["stop_sequences"]), key=len, default="")
                if found and count >= self.params["sampling"].min_new_tokens and not is_late:
                    return text if self.params["include_stop_sequence"] else text.removesuffix(found), count, found
        return text, count, ""


@st.composite
def runs(draw: st.DrawFn) -> Run:
    """Random tokens, encoded text, or a mixture; stop sequences are mostly parts of their text."""
    library = draw(st.sampled_from(vocabularies.KINDS))()
    tokens = st.integers(0, library.get_vocab_size() + 1).map(lambda token: [token])
    texts = st.text("the cat🙂é日本", max_size=8).map(lambda text: library.encode(text, add_special_tokens=False).ids)
    ids = [token for part in draw(st.lists(tokens | texts, max_size=15)) for token in part] or [0]
    params = {
        "stop_sequences": (),
        "include_stop_sequence": draw(st.booleans()),
        "output_special_tokens": draw(st.booleans()),
        "sampling": SamplingParams(min_new_tokens=draw(st.sampled_from([0, 0, 3]))),
        "wanted": Wanted(generated_tokens=draw(st.booleans()), input_tokens=draw(st.booleans())),
        "input_text": draw(st.booleans()),
        "seed": 3,
    }
    end = draw(st.sampled_from([MAX, EOS, FinishReason.TIME_LIMIT]))
    run = Run(library, params, ids, end, draw(st.lists(st.booleans(), min_size=len(ids), max_size=len(ids))))
    text = "".join(run.parts) or "x"
    starts = st.integers(0, len(text) - 1)
    said = st.builds(lambda start, length: text[start : start + length], starts, st.integers(1, 6))
    params["stop_sequences"] = tuple(draw(st.lists(said | st.text("ate🙂 \ufffd", min_size=1, max_size=4), max_size=3)))
    return run


@settings(max_examples=150, deadline=None)
@given(runs())
def test_the_frames_of_a_stream_add_up_to_the_unary_answer_and_the_text_of_the_tokens(run: Run):
    unary, stream = output_of(run.library, **run.params), output_of(run.library, **run.params)
    frames = [first_frame(stream)]
    for output in (unary, stream):
        output.on_prompt_details([TokenDetail(rank=4)])

    for token, fetch in zip(run.ids, run.fetches, strict=True):
        is_last = unary.num_generated == len(run.ids) - 1
        for output in (unary, stream):
            output.on_token(token, run.end if is_last else GO_ON, None, 0.0)
        if fetch or stream.is_finished:
            if stream.is_input_part_due and len(frames) == 1:
                frames.append(input_frame(stream))
            frames += take_frames(stream)
        if stream.is_finished:
            break

    answer, last = answer_of(unary), frames[-1]
    text, count, stop_sequence = run.expected()
    echo = "the input" if run.params["input_text"] else ""
    assert (answer.text, answer.generated_token_count, answer.stop_sequence) == (echo + text, count, stop_sequence)
    assert "".join(frame.text for frame in frames) == answer.text
    assert [token for frame in frames for token in frame.tokens] == list(answer.tokens)
    assert [token for frame in frames for token in frame.input_tokens] == list(answer.input_tokens)
    assert frames[0].input_token_count == answer.input_token_count
    assert (last.stop_reason, last.stop_sequence, last.seed, last.generated_token_count) == (
        answer.stop_reason,
        answer.stop_sequence,
        answer.seed,
        answer.generated_token_count,
    )
    assert [frame.stop_reason for frame in frames[:-1]] == [pb.NOT_FINISHED] * (len(frames) - 1)
    assert all(frame.text or frame.tokens or frame.input_tokens for frame in frames[1:-1])
    counts = [frame.generated_token_count for frame in frames if frame.tokens]
    assert counts == (list(range(1, count + 1)) if run.params["wanted"].generated_tokens else [])
