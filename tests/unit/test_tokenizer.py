"""Tokens of prompts and of the Tokenize RPC: truncation, BOS, byte offsets."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer as Library
from tokenizers import models, processors

import vocabularies
from tgis_server.errors import ModelError
from tgis_server.frontend.tokenizer import EncodedInput, TokenizedText, Tokenizer, TokenizerFailed, to_byte_offsets


def tokenizer_of(library: Library, **options: object) -> Tokenizer:
    return Tokenizer(library, **options)


def encode(tokenizer: Tokenizer, text: str, truncate_to: int = 0) -> EncodedInput:
    return asyncio.run(tokenizer.encode_inputs([text], truncate_to))[0]


def words_with(template: str, **special: int) -> Library:
    library = vocabularies.words()
    library.post_processor = processors.TemplateProcessing(single=template, special_tokens=list(special.items()))
    return library


def test_truncation_keeps_the_last_tokens():
    tokenizer = tokenizer_of(vocabularies.words())

    assert encode(tokenizer, "t1 t2 t3 t4", 2) == EncodedInput([3, 4], 4)


@pytest.mark.parametrize("limit", [0, 4, 5])
def test_a_limit_that_is_not_exceeded_changes_nothing(limit):
    tokenizer = tokenizer_of(vocabularies.words())

    assert encode(tokenizer, "t1 t2 t3 t4", limit).token_ids == [1, 2, 3, 4]


def test_a_bos_that_the_tokenizer_adds_stays_first():
    tokenizer = tokenizer_of(words_with("t7 $A", t7=7))

    assert encode(tokenizer, "t1 t2 t3", 2).token_ids == [7, 3]
    assert encode(tokenizer, "t1 t2 t3", 1).token_ids == [7]


def test_special_tokens_at_the_end_are_kept_and_count():
    tokenizer = tokenizer_of(words_with("$A t8", t8=8))

    assert encode(tokenizer, "t1 t2 t3", 2).token_ids == [3, 8]


@pytest.mark.parametrize(("limit", "expected"), [(3, [1, 4, 2]), (2, [1, 2]), (1, [1])])
def test_between_its_first_and_last_special_tokens_an_input_loses_its_beginning(limit, expected):
    tokenizer = tokenizer_of(vocabularies.word_piece())

    assert encode(tokenizer, "the cat", limit).token_ids == expected


def test_a_special_token_that_the_text_begins_with_is_not_kept():
    tokenizer = tokenizer_of(vocabularies.byte_level())

    assert encode(tokenizer, "<s>ab", 2) == EncodedInput(vocabularies.byte_level().encode("ab").ids, 3)


def test_a_text_without_characters_has_no_tokens_unless_the_tokenizer_adds_some():
    plain, with_bos = tokenizer_of(vocabularies.words()), tokenizer_of(words_with("t7 $A", t7=7))

    assert asyncio.run(plain.tokenize([""], want_offsets=True))[0] == TokenizedText([], [], [])
    assert asyncio.run(with_bos.tokenize([""], want_offsets=True))[0] == TokenizedText([7], ["t7"], [(0, 0)])


def test_the_tokenizers_own_truncation_and_padding_are_off():
    library = vocabularies.words()
    library.enable_truncation(2)
    library.enable_padding(length=8)

    assert encode(tokenizer_of(library), "t1 t2 t3").token_ids == [1, 2, 3]


def test_tokenize_cuts_plainly_and_loses_bos():
    tokenizer = tokenizer_of(words_with("t7 $A", t7=7))

    text = asyncio.run(tokenizer.tokenize(["t1 t2 t3"], 2, want_offsets=True))[0]

    assert (text.token_ids, text.tokens, text.offsets) == ([2, 3], ["t2", "t3"], [(3, 5), (6, 8)])


def test_special_tokens_have_the_offset_zero():
    text = asyncio.run(tokenizer_of(words_with("t7 $A", t7=7)).tokenize(["t1"], want_offsets=True))[0]

    assert (text.tokens, text.offsets) == (["t7", "t1"], [(0, 0), (0, 2)])


def test_offsets_count_bytes_of_utf8():
    text = asyncio.run(tokenizer_of(vocabularies.metaspace()).tokenize(["été 🙂 cat"], want_offsets=True))[0]

    assert text.tokens == ["▁été", "▁🙂", "▁cat", "</s>"]
    assert text.offsets == [(0, 5), (5, 10), (10, 14), (0, 0)]


def test_byte_offsets_of_ascii_are_its_character_offsets():
    assert to_byte_offsets("abc", [(0, 1), (1, 3)]) == [(0, 1), (1, 3)]


def test_offsets_are_left_out_unless_asked_for():
    assert asyncio.run(tokenizer_of(vocabularies.words()).tokenize(["t1"]))[0].offsets == []


@pytest.mark.parametrize("want_offsets", [True, False])
def test_pieces_are_shown_with_and_without_offsets(want_offsets):
    text = asyncio.run(tokenizer_of(vocabularies.words()).tokenize(["t1 t2"], want_offsets=want_offsets))[0]

    assert text.tokens == ["t1", "t2"]


def test_pieces_are_those_of_the_vocabulary_and_unknown_ids_have_none():
    tokenizer = tokenizer_of(vocabularies.byte_level())

    assert [tokenizer.get_piece(i) for i in (1, 258, 10**6)] == ["</s>", "Ġt", ""]


def test_a_text_that_the_library_refuses_fails_with_its_message():
    tokenizer = tokenizer_of(Library(models.WordLevel({"t1": 0}, unk_token="missing")))

    first, second = asyncio.run(tokenizer.encode_inputs(["t1", "other"]))

    assert first == EncodedInput([0], 1)
    assert isinstance(second, TokenizerFailed)
    with pytest.raises(TokenizerFailed, match="Missing"):
        asyncio.run(tokenizer.tokenize(["t1", "other"]))


def test_texts_are_many_or_few_to_a_job_and_keep_their_order():
    tokenizer = tokenizer_of(vocabularies.words(), num_workers=3)

    for count in (0, 1, 2, 3, 4, 10_000):
        texts = [f"t{i % 100}" for i in range(count)]
        assert [one.tokens for one in asyncio.run(tokenizer.tokenize(texts))] == [[text] for text in texts]


def loaded(directory: Path, library: Library, **config: object) -> Tokenizer:
    library.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return Tokenizer.load(directory, num_workers=1)


@pytest.mark.parametrize("kind", ["LlamaTokenizerFast", "LlamaTokenizer", None])
def test_a_bos_that_is_asked_for_begins_whole_and_truncated_prompts(kind, tmp_path):
    """Although the tokenizer itself adds none."""
    config = {"add_bos_token": True, "bos_token": {"content": "t9"}, "tokenizer_class": kind}
    tokenizer = loaded(tmp_path, vocabularies.words(), **config)

    assert encode(tokenizer, "t1 t2 t3").token_ids == [9, 1, 2, 3]
    assert encode(tokenizer, "t1 t2 t3", 2).token_ids == [9, 3]
    text = asyncio.run(tokenizer.tokenize(["t1 t2"], want_offsets=True))[0]
    assert (text.token_ids, text.offsets) == ([9, 1, 2], [(0, 0), (0, 2), (3, 5)])


def test_a_bos_that_the_tokenizer_adds_is_not_added_again(tmp_path):
    tokenizer = loaded(tmp_path, words_with("t9 $A", t9=9), add_bos_token=True, bos_token="t9")

    assert encode(tokenizer, "t1").token_ids == [9, 1]


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"add_bos_token": False, "bos_token": "t9"},
        {"add_bos_token": True},
        {"add_bos_token": True, "bos_token": "not there"},
        {"add_bos_token": True, "bos_token": "t9", "tokenizer_class": "PreTrainedTokenizerFast"},
        {"add_bos_token": True, "bos_token": "t9", "tokenizer_class": "Qwen2Tokenizer"},
    ],
)
def test_no_prompt_gets_a_bos_that_no_version_of_transformers_adds(tmp_path, config):
    tokenizer = loaded(tmp_path, vocabularies.words(), **config)

    assert encode(tokenizer, "t1 t2 t3").token_ids == [1, 2, 3]
    assert encode(tokenizer, "t1 t2 t3", 2).token_ids == [2, 3]


def test_a_directory_without_tokenizer_json_is_refused_with_what_to_do(tmp_path):
    with pytest.raises(ModelError, match=r"No existing fast tokenizer \(tokenizer\.json\) found in .*save_pretrained"):
        Tokenizer.load(tmp_path, num_workers=1)


def test_a_broken_tokenizer_json_is_refused(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{")

    with pytest.raises(ModelError, match=r"tokenizer\.json cannot be read"):
        Tokenizer.load(tmp_path, num_workers=1)
