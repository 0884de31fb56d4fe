"""The Tokenize RPC, and ModelInfo."""

from __future__ import annotations

from typing import Any

import pytest

from contract_api import Api, Refusal, asked_of, exactly, refusal_of, row
from contract_servers import ONE_SERVER, VARIANTS
from tgis_server.wire import generation_pb2 as pb

ASKED_OF = ONE_SERVER

TEXTS = {
    "plain": "Once upon a time, there was a girl.",
    "spaces": "  two  spaces\n\nand\ttabs ",
    "accents": "Žluťoučký kůň",
    "emoji": "a 🦆🦆 b 👩‍👩‍👧",
    "japanese": "日本語です",
    "control": "a\x00b",
    "special-tokens": "a</s> <s>b",
    "empty": "",
}
by_text = pytest.mark.parametrize("text", [pytest.param(text, id=name) for name, text in TEXTS.items()])


def spans(response: pb.TokenizeResponse) -> list[tuple[int, int]]:
    return [(offset.start, offset.end) for offset in response.offsets]


# Known by hand: the recital's tokenizer makes a token of each byte, after <s>


@row("tokenize-count")
def test_special_tokens_are_counted(recital: Api) -> None:
    assert recital.tokenize("abc") == [pb.TokenizeResponse(token_count=4)]


@row("tokenize-pieces")
def test_pieces_are_those_of_the_vocabulary(recital: Api) -> None:
    [response] = recital.tokenize("a é", return_tokens=True)

    assert response == pb.TokenizeResponse(token_count=5, tokens=["<s>", "a", "Ġ", "Ã", "©"])


@row("tokenize-byte-offsets")
def test_offsets_count_bytes_of_the_text(recital: Api) -> None:
    [response] = recital.tokenize("aéb", return_offsets=True)

    assert spans(response) == [(0, 0), (0, 1), (1, 3), (1, 3), (3, 4)]
    assert list(response.tokens) == []


@row("tokenize-empty-text")
def test_a_text_without_characters_has_the_special_tokens(recital: Api) -> None:
    [response] = recital.tokenize("", return_tokens=True, return_offsets=True)

    assert (response.token_count, list(response.tokens), spans(response)) == (1, ["<s>"], [(0, 0)])


@row("tokenize-truncation-loses-the-first-token")
def test_truncation_keeps_the_last_entries_whatever_they_are(recital: Api) -> None:
    [response] = recital.tokenize("abcd", return_tokens=True, return_offsets=True, truncate_input_tokens=2)

    assert (response.token_count, list(response.tokens), spans(response)) == (2, ["c", "d"], [(2, 3), (3, 4)])


@pytest.mark.parametrize(
    "limit", [pytest.param(n, id=f"tokenize-truncation-not-needed-{n}") for n in (0, 5, 6, 2**32 - 1)]
)
def test_a_short_text_is_not_truncated(recital: Api, limit: int) -> None:
    [response] = recital.tokenize("abcd", return_tokens=True, truncate_input_tokens=limit)

    assert (response.token_count, list(response.tokens)) == (5, ["<s>", "a", "b", "c", "d"])


@row("tokenize-longer-than-the-context")
def test_a_text_may_be_longer_than_the_context(recital: Api) -> None:
    assert recital.count_tokens("x" * 5000) == 5001


@row("tokenize-special-token-in-text")
def test_a_special_token_may_be_written_in_the_text(recital: Api) -> None:
    [response] = recital.tokenize("a</s>", return_tokens=True)

    assert list(response.tokens) == ["<s>", "a", "</s>"]


# Any tokenizer


@row("tokenize-zero-inputs")
def test_a_call_without_inputs_has_no_answers(api: Api) -> None:
    assert api.tokenize() == []


@row("tokenize-many-inputs")
def test_any_number_of_inputs_is_answered_in_order(api: Api) -> None:
    texts = ["a" * (n % 50) for n in range(2000)]

    answers = api.tokenize(*texts)

    counts = {length: api.count_tokens("a" * length) for length in range(50)}
    assert [answer.token_count for answer in answers] == [counts[len(text)] for text in texts]


@by_text
@row("tokenize-flags")
def test_pieces_and_offsets_come_only_if_asked_for(api: Api, text: str) -> None:
    [nothing], [tokens], [offsets], [both] = (
        api.tokenize(text, return_tokens=with_tokens, return_offsets=with_offsets)
        for with_tokens, with_offsets in ((False, False), (True, False), (False, True), (True, True))
    )

    count = nothing.token_count
    assert (len(nothing.tokens), len(nothing.offsets)) == (0, 0)
    assert (len(tokens.tokens), len(tokens.offsets)) == (count, 0)
    assert (len(offsets.tokens), len(offsets.offsets)) == (0, count)
    assert (both.tokens, both.offsets) == (tokens.tokens, offsets.offsets)


@by_text
@row("tokenize-offsets-cover-the-text")
def test_offsets_ascend_within_the_bytes_of_the_text(api: Api, text: str) -> None:
    [response] = api.tokenize(text, return_offsets=True)

    ordered = [span for span in spans(response) if span != (0, 0)]
    assert ordered == sorted(ordered)
    assert all(0 <= start < end <= len(text.encode()) for start, end in ordered)
    assert all(text.encode()[start:end].decode() for start, end in ordered)  # no offset is inside a character


@by_text
@row("tokenize-counts-like-generate")
def test_the_count_is_that_of_a_generated_answer(api: Api, text: str) -> None:
    [answer] = api.generate(text, **exactly(1))

    assert api.count_tokens(text) == answer.input_token_count


@by_text
@row("tokenize-like-the-library")
def test_pieces_and_offsets_are_those_of_the_models_tokenizer(api: Api, model_dir: Any, text: str) -> None:
    tokenizer = pytest.importorskip("tokenizers").Tokenizer.from_file(str(model_dir / "tokenizer.json"))
    tokenizer.no_truncation()

    [response] = api.tokenize(text, return_tokens=True, return_offsets=True)

    expected = tokenizer.encode(text)
    assert list(response.tokens) == expected.tokens
    assert spans(response) == [(len(text[:a].encode()), len(text[:b].encode())) for a, b in expected.offsets]


@pytest.mark.parametrize("limit", [pytest.param(n, id=f"tokenize-truncated-to-{n}") for n in (1, 3)])
@by_text
def test_truncated_entries_are_the_last_ones_of_the_whole(api: Api, text: str, limit: int) -> None:
    [whole] = api.tokenize(text, return_tokens=True, return_offsets=True)

    [cut] = api.tokenize(text, return_tokens=True, return_offsets=True, truncate_input_tokens=limit)

    assert cut.token_count == min(limit, whole.token_count)
    assert list(cut.tokens) == list(whole.tokens)[-limit:]
    assert spans(cut) == spans(whole)[-limit:]


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        pytest.param(
            {"adapter_id": "nowhere"}, "adapter_id supplied but no adapter store was configured", id="tokenize-adapter"
        ),
        pytest.param(
            {"prefix_id": "nowhere"},
            "can't retrieve prompt prefix with id 'nowhere': prefix id \"nowhere\" not found",
            id="tokenize-prefix",
        ),
    ],
)
def test_an_adapter_or_prefix_that_does_not_exist_is_refused(api: Api, fields: dict[str, str], text: str) -> None:
    assert refusal_of(lambda: api.tokenize("Hello", **fields)) == Refusal.invalid(text)


@row("tokenize-model_id-is-ignored")
def test_the_model_id_is_ignored(api: Api) -> None:
    assert api.tokenize("Hello", model_id="some/other-model") == api.tokenize("Hello")


# ModelInfo


@asked_of(*VARIANTS)
@row("info-limits")
def test_the_limits_are_consistent(api: Api) -> None:
    assert 1 <= api.info.max_new_tokens < api.info.max_sequence_length


@row("info-kind")
def test_the_model_is_a_decoder(api: Api) -> None:
    assert api.info.model_kind == pb.ModelInfoResponse.DECODER_ONLY


@row("info-lowered-max_new_tokens")
def test_a_configured_limit_beyond_the_context_is_lowered(recital: Api) -> None:
    assert recital.info == pb.ModelInfoResponse(max_sequence_length=19, max_new_tokens=18)


@row("info-model_id-is-ignored")
def test_model_info_ignores_the_model_id(api: Api) -> None:
    assert api.stub.ModelInfo(pb.ModelInfoRequest(model_id="some/other-model")) == api.info


@asked_of(*VARIANTS)
@row("info-of-the-files")
def test_the_context_is_not_longer_than_the_model_was_made_for(api: Api, model_dir: Any) -> None:
    import json

    config = json.loads((model_dir / "config.json").read_text())

    assert api.info.max_sequence_length <= config["max_position_embeddings"]
