"""Token ids become text piece by piece, as if the tokenizers library decoded them after another token."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders

import vocabularies
from tgis_server.errors import ModelError
from tgis_server.frontend.text import Detokenizer, PieceDecoder

FIRST = {vocabularies.end_of_word: "c", vocabularies.words: "t0"}  # a piece that is its own text, if "a" is not
kinds = st.sampled_from(vocabularies.KINDS)
any_kind = pytest.mark.parametrize("kind", vocabularies.KINDS, ids=lambda kind: kind.__name__)


def deltas(tokenizer: Tokenizer, ids: list[int], *, output_special_tokens: bool = False) -> list[str]:
    detokenizer = Detokenizer(PieceDecoder(tokenizer, output_special_tokens=output_special_tokens))
    return [detokenizer.push(token_id) for token_id in ids]


def ids_of(tokenizer: Tokenizer, *pieces: str) -> list[int]:
    return [tokenizer.token_to_id(piece) for piece in pieces]


def decode_after_another(tokenizer: Tokenizer, ids: list[int], first: str) -> str:
    """The library's text of these tokens after another piece."""
    return tokenizer.decode([tokenizer.token_to_id(first), *ids], skip_special_tokens=True).removeprefix(first)


@given(kind=kinds, data=st.data())
def test_joined_deltas_equal_the_text_that_the_library_decodes(kind, data):
    tokenizer = kind()
    ids = data.draw(st.lists(st.integers(0, tokenizer.get_vocab_size() - 1), max_size=30))
    whole = decode_after_another(tokenizer, ids, FIRST.get(kind, "a"))

    text = "".join(deltas(tokenizer, ids))

    # The two texts differ in their replacement characters: only the library shows an unfinished end.
    if "\ufffd" not in whole:
        assert text == whole


@given(text=st.text(max_size=20))
def test_byte_level_deltas_never_split_a_character(text):
    tokenizer = vocabularies.byte_level()

    parts = deltas(tokenizer, tokenizer.encode(text, add_special_tokens=False).ids)

    assert "".join(parts) == text
    assert all("\ufffd" not in part for part in parts) or "\ufffd" in text


@given(text=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="▁"), min_size=1, max_size=20))
def test_byte_fallback_deltas_never_split_a_character(text):
    tokenizer = vocabularies.byte_fallback()

    parts = deltas(tokenizer, tokenizer.encode(text, add_special_tokens=False).ids)

    assert "".join(parts) == " " + text
    assert all("\ufffd" not in part for part in parts) or "\ufffd" in text


@given(kind=kinds, data=st.data())
def test_every_delta_is_valid_utf8_whatever_the_tokens(kind, data):
    tokenizer = kind()
    ids = data.draw(st.lists(st.integers(0, tokenizer.get_vocab_size() + 5), max_size=50))

    for part in deltas(tokenizer, ids):
        part.encode("utf-8", errors="strict")


@pytest.mark.parametrize(
    ("tokenizer", "pieces", "expected"),
    [
        (vocabularies.byte_level(), ["Ġthe", "Ġ", "c", "at"], [" the", " ", "c", "at"]),
        (vocabularies.byte_level(), ["Ã", "©"], ["", "é"]),
        (vocabularies.byte_level(), ["ð", "Ł", "Ļ", "Ĥ"], ["", "", "", "🙂"]),
        (vocabularies.byte_fallback(), ["▁the", "▁", "c", "at"], [" the", " ", "c", "at"]),
        (vocabularies.byte_fallback(), ["<0xC3>", "<0xA9>", "é"], ["", "é", "é"]),
        (vocabularies.metaspace(), ["▁the", "▁cat", "s"], [" the", " cat", "s"]),
        (vocabularies.word_piece(), ["cat", "##s", "sat", ".", "n't"], [" cat", "s", " sat", ".", "n't"]),
        (vocabularies.end_of_word(), ["the</w>", "c", "at</w>", "sat</w>"], ["the", " c", "at", " sat"]),
        (vocabularies.words(), ["t1", "t2"], [" t1", " t2"]),
    ],
)
def test_each_kind_of_vocabulary_is_decoded_token_by_token(tokenizer, pieces, expected):
    assert deltas(tokenizer, ids_of(tokenizer, *pieces)) == expected


@any_kind
def test_special_tokens_add_nothing(kind):
    tokenizer = kind()
    special = [i for i, token in tokenizer.get_added_tokens_decoder().items() if token.special]

    assert deltas(tokenizer, special) == [""] * len(special)


def test_special_tokens_are_kept_on_request():
    tokenizer = vocabularies.byte_fallback()

    assert deltas(tokenizer, ids_of(tokenizer, "<s>", "c", "</s>"), output_special_tokens=True) == ["<s>", "c", "</s>"]


def test_a_special_token_within_a_character_does_not_break_it():
    tokenizer = vocabularies.byte_level()

    assert deltas(tokenizer, ids_of(tokenizer, "Ã", "<s>", "©")) == ["", "", "é"]


def test_an_unfinished_character_at_the_end_is_left_out():
    tokenizer = vocabularies.byte_level()

    assert deltas(tokenizer, ids_of(tokenizer, "a", "ð", "Ł")) == ["a", "", ""]


def test_invalid_bytes_are_replaced_once_text_follows():
    tokenizer = vocabularies.byte_level()

    parts = deltas(tokenizer, [*ids_of(tokenizer, "Ł") * 2000, *ids_of(tokenizer, "a", "Ł")])

    assert parts == [*[""] * 2000, "\ufffd" * 2000 + "a", ""]


def test_the_start_of_a_character_ends_an_unfinished_one():
    tokenizer = vocabularies.byte_fallback()

    parts = deltas(tokenizer, [*ids_of(tokenizer, "<0xF0>") * 2000, *ids_of(tokenizer, "a")])

    assert parts == [*[""] * 2000, "\ufffd" * 2000 + "a"]


def test_an_unknown_id_adds_nothing():
    assert deltas(vocabularies.byte_level(), [123456]) == [""]


def test_a_decoder_that_needs_the_whole_output_is_refused_at_startup():
    tokenizer = vocabularies.words()
    tokenizer.decoder = decoders.CTC()

    with pytest.raises(ModelError, match="decodes with CTC, which cannot decode token by token"):
        PieceDecoder(tokenizer)
