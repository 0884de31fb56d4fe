"""Tokens of prompts and of the Tokenize RPC: truncation, BOS, byte offsets."""

from __future__ import annotations

import asyncio
import json
import threading
from functools import partial
from itertools import accumulate
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Library
from tokenizers import models, processors

import vocabularies
from tgis_server.errors import ModelError
from tgis_server.frontend.grpc_api.tokenize_reply import join_replies, reply_parts
from tgis_server.frontend.text import EncodedInput, Tokenizer, TokenizerFailed, byte_offsets, encoding
from tgis_server.frontend.text import tokenizer as tokenizer_module
from tgis_server.frontend.text.tokenizer import split
from tgis_server.wire import generation_pb2 as pb
from tgis_server.wire.messages import pack_ids


def tokenizer_of(library: Library, **options: object) -> Tokenizer:
    return Tokenizer(library, **options)


def encode(tokenizer: Tokenizer, text: str, truncate_to: int = 0) -> EncodedInput:
    return asyncio.run(tokenizer.encode_inputs([text], truncate_to))[0]


def tokenize(
    tokenizer: Tokenizer, *texts: str, truncate_to: int = 0, offsets: bool = True
) -> list[pb.TokenizeResponse]:
    request = pb.BatchedTokenizeRequest(return_tokens=True, return_offsets=offsets, truncate_input_tokens=truncate_to)
    make = partial(reply_parts, request, tokenizer.get_piece)
    replies = asyncio.run(tokenizer.tokenize(texts, make, want_offsets=offsets))
    return list(pb.BatchedTokenizeResponse.FromString(join_replies(replies)).responses)


def offsets_of(response: pb.TokenizeResponse) -> list[tuple[int, int]]:
    return [(offset.start, offset.end) for offset in response.offsets]


def words_with(template: str, **special: int) -> Library:
    library = vocabularies.words()
    library.post_processor = processors.TemplateProcessing(single=template, special_tokens=list(special.items()))
    return library


def test_truncation_keeps_the_last_tokens():
    tokenizer = tokenizer_of(vocabularies.words())

    assert encode(tokenizer, "t1 t2 t3 t4", 2) == EncodedInput(pack_ids([3, 4]), 4, 4)


@pytest.mark.parametrize("limit", [0, 4, 5])
def test_a_limit_that_is_not_exceeded_changes_nothing(limit):
    tokenizer = tokenizer_of(vocabularies.words())

    assert list(encode(tokenizer, "t1 t2 t3 t4", limit).token_ids) == [1, 2, 3, 4]


def test_a_bos_that_the_tokenizer_adds_stays_first():
    tokenizer = tokenizer_of(words_with("t7 $A", t7=7))

    assert list(encode(tokenizer, "t1 t2 t3", 2).token_ids) == [7, 3]
    assert list(encode(tokenizer, "t1 t2 t3", 1).token_ids) == [7]


def test_special_tokens_at_the_end_are_kept_and_count():
    tokenizer = tokenizer_of(words_with("$A t8", t8=8))

    assert list(encode(tokenizer, "t1 t2 t3", 2).token_ids) == [3, 8]


@pytest.mark.parametrize(("limit", "expected"), [(3, [1, 4, 2]), (2, [1, 2]), (1, [1])])
def test_truncation_cuts_the_beginning_between_the_special_tokens(limit, expected):
    tokenizer = tokenizer_of(vocabularies.word_piece())

    assert list(encode(tokenizer, "the cat", limit).token_ids) == expected


def test_truncation_does_not_keep_a_special_token_of_the_text_itself():
    tokenizer = tokenizer_of(vocabularies.byte_level())
    ids = vocabularies.byte_level().encode("ab").ids

    assert encode(tokenizer, "<s>ab", 2) == EncodedInput(pack_ids(ids), 3, max(ids))


def test_an_empty_text_has_no_tokens_unless_the_tokenizer_adds_some():
    plain, with_bos = tokenizer_of(vocabularies.words()), tokenizer_of(words_with("t7 $A", t7=7))

    assert tokenize(plain, "") == [pb.TokenizeResponse()]
    assert tokenize(with_bos, "") == [pb.TokenizeResponse(token_count=1, tokens=["t7"], offsets=[{}])]


def test_the_tokenizers_own_truncation_and_padding_are_off():
    library = vocabularies.words()
    library.enable_truncation(2)
    library.enable_padding(length=8)

    assert list(encode(tokenizer_of(library), "t1 t2 t3").token_ids) == [1, 2, 3]


def test_tokenize_truncates_without_keeping_bos():
    tokenizer = tokenizer_of(words_with("t7 $A", t7=7))

    [text] = tokenize(tokenizer, "t1 t2 t3", truncate_to=2)

    assert (text.token_count, text.tokens, offsets_of(text)) == (2, ["t2", "t3"], [(3, 5), (6, 8)])


def test_special_tokens_have_the_offset_zero():
    [text] = tokenize(tokenizer_of(words_with("t7 $A", t7=7)), "t1")

    assert (text.tokens, offsets_of(text)) == (["t7", "t1"], [(0, 0), (0, 2)])


def test_offsets_are_in_bytes_of_utf8():
    [text] = tokenize(tokenizer_of(vocabularies.metaspace()), "été 🙂 cat")

    assert text.tokens == ["▁été", "▁🙂", "▁cat", "</s>"]
    assert offsets_of(text) == [(0, 5), (5, 10), (10, 14), (0, 0)]


def test_byte_offsets_of_ascii_text_are_character_offsets():
    assert list(byte_offsets("abc", [0, 1], [1, 3])) == [(0, 1), (1, 3)]


def test_byte_offsets_may_go_back_within_a_character():
    assert list(byte_offsets("é🙂z", [1, 0, 2], [2, 1, 3])) == [(2, 6), (0, 2), (6, 7)]


def test_offsets_are_left_out_unless_requested():
    assert offsets_of(tokenize(tokenizer_of(vocabularies.words()), "t1", offsets=False)[0]) == []


@pytest.mark.parametrize("want_offsets", [True, False])
def test_pieces_are_shown_with_and_without_offsets(want_offsets):
    [text] = tokenize(tokenizer_of(vocabularies.words()), "t1 t2", offsets=want_offsets)

    assert text.tokens == ["t1", "t2"]


def test_pieces_come_from_the_vocabulary_and_unknown_ids_have_none():
    tokenizer = tokenizer_of(vocabularies.byte_level())

    assert [tokenizer.get_piece(i) for i in (1, 258, 10**6)] == ["</s>", "Ġt", ""]


def test_a_text_that_the_library_refuses_fails_with_the_librarys_message():
    tokenizer = tokenizer_of(Library(models.WordLevel({"t1": 0}, unk_token="missing")))

    first, second = asyncio.run(tokenizer.encode_inputs(["t1", "other"]))

    assert first == EncodedInput(pack_ids([0]), 1, 0)
    assert isinstance(second, TokenizerFailed)
    with pytest.raises(TokenizerFailed, match="Missing"):
        tokenize(tokenizer, "t1", "other")


def test_texts_keep_their_order_however_they_are_grouped_into_jobs():
    tokenizer = tokenizer_of(vocabularies.words(), num_workers=3)

    for count in (0, 1, 2, 3, 4, 10_000):
        texts = [f"t{i % 100}" for i in range(count)]
        assert [one.tokens for one in tokenize(tokenizer, *texts)] == [[text] for text in texts]


LONG_TEXTS = {
    "words": "Once upon a time, été 日本 🙂 the cat sat on 123456 mats.\n" * 2000,
    "one word": "a" * 100_000,
    "digits": "1234567" * 15_000,
    "next to short ones": "the cat </s> sat. " * 4000,
}


@pytest.mark.parametrize("kind", vocabularies.KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("text", LONG_TEXTS.values(), ids=LONG_TEXTS)
def test_a_long_text_has_the_same_tokens_as_when_encoded_whole(kind, text):
    tokenizer, library = tokenizer_of(kind(), num_workers=2), kind()
    whole = library.encode(text)

    cut, alone = encode(tokenizer, text), tokenize(tokenizer, "the", text, "cat")[1]

    assert list(cut.token_ids) == whole.ids
    assert list(alone.tokens) == [library.id_to_token(token_id) for token_id in whole.ids]
    borders = [0, *accumulate(len(character.encode()) for character in text)]
    assert offsets_of(alone) == [(borders[start], borders[end]) for start, end in whole.offsets]


@settings(deadline=None)
@given(st.lists(st.sampled_from(["the", " cat", " ", "\n", "été", "日本", "🙂", "t1", " t22", "7", "</s>", "a", "."])))
def test_joined_windows_equal_the_whole_text_or_are_rejected(pieces):
    """The windows are so small that their borders fall anywhere."""
    text = "".join(pieces * 8)
    for kind in vocabularies.KINDS:
        whole = encoding.encode(kind(), text, want_offsets=True)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(encoding, "WINDOW", 64)
            patch.setattr(encoding, "OVERLAP", 48)
            patch.setattr(encoding, "MIN_OVERLAP_TOKENS", 6)
            starts = encoding.window_starts(len(text))
            windows = [encoding.encode_window(kind(), text, start, want_offsets=True) for start in starts]
            joined = encoding.join(windows)

        assert joined is None or facts_of(joined) == facts_of(whole)


def facts_of(one: encoding.Encoding) -> list[object]:
    return [list(one.ids), one.num_prefix, one.num_suffix, list(one.starts), list(one.ends)]


def test_short_texts_share_a_job_up_to_a_window():
    texts = ["a" * 20_000, "b" * 20_000, "c", "d", "e" * 40_000, "f"]

    assert [len(part) for part in split(texts, 10)] == [1, 3, 1, 1]
    assert [len(part) for part in split(texts, 2)] == [1, 2, 1, 1, 1]
    assert list(split([], 2)) == []


def test_a_prompt_does_not_wait_for_a_text_that_must_be_encoded_whole(monkeypatch):
    """This holds even with a single worker."""
    began, proceed = threading.Event(), threading.Event()

    def encode_slowly(*arguments: object, **options: object) -> encoding.Encoding:
        if len(arguments[1]) > encoding.WINDOW + encoding.OVERLAP:
            began.set()
            assert proceed.wait(10)
        return encoding.encode(*arguments, **options)

    async def check() -> None:
        tokenizer = tokenizer_of(vocabularies.word_piece(), num_workers=1)
        huge = asyncio.create_task(tokenizer.encode_inputs(["a" * 100_000]))
        await asyncio.to_thread(began.wait, 10)
        assert (await tokenizer.encode_inputs(["the cat"]))[0].num_tokens_before_truncation == 4
        proceed.set()
        await huge

    monkeypatch.setattr(tokenizer_module, "encode", encode_slowly)
    asyncio.run(asyncio.wait_for(check(), 20))


def test_a_panic_of_the_library_fails_its_text(monkeypatch):
    class PanicException(BaseException):
        """A Rust panic, as Python sees it."""

    def panic(*_: object, **__: object) -> None:
        raise PanicException("index out of bounds")

    monkeypatch.setattr(tokenizer_module, "encode", panic)

    [result] = asyncio.run(tokenizer_of(vocabularies.words()).encode_inputs(["t1"]))

    assert isinstance(result, TokenizerFailed)
    assert str(result) == "index out of bounds"


def test_ordinary_text_is_joined_from_windows():
    library, text = vocabularies.byte_level(), LONG_TEXTS["words"]
    starts = encoding.window_starts(len(text))

    windows = [encoding.encode_window(library, text, start, want_offsets=False) for start in starts]

    assert len(windows) == 4
    assert encoding.join(windows) is not None


def loaded(directory: Path, library: Library, **config: object) -> Tokenizer:
    library.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return Tokenizer.load(directory, num_workers=1)


@pytest.mark.parametrize("kind", ["LlamaTokenizerFast", "LlamaTokenizer", None])
def test_a_requested_bos_begins_whole_and_truncated_prompts(kind, tmp_path):
    """This holds even though the tokenizer itself adds none."""
    config = {"add_bos_token": True, "bos_token": {"content": "t9"}, "tokenizer_class": kind}
    tokenizer = loaded(tmp_path, vocabularies.words(), **config)

    assert list(encode(tokenizer, "t1 t2 t3").token_ids) == [9, 1, 2, 3]
    assert list(encode(tokenizer, "t1 t2 t3", 2).token_ids) == [9, 3]
    [text] = tokenize(tokenizer, "t1 t2")
    assert (text.tokens, offsets_of(text)) == (["t9", "t1", "t2"], [(0, 0), (0, 2), (3, 5)])


def test_a_bos_that_the_tokenizer_adds_is_not_added_again(tmp_path):
    library = words_with("t9 $A", t9=9)
    library.enable_padding(direction="left", length=8)
    tokenizer = loaded(tmp_path, library, add_bos_token=True, bos_token="t9")

    assert list(encode(tokenizer, "t1").token_ids) == [9, 1]


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

    assert list(encode(tokenizer, "t1 t2 t3").token_ids) == [1, 2, 3]
    assert list(encode(tokenizer, "t1 t2 t3", 2).token_ids) == [2, 3]


def test_a_directory_without_tokenizer_json_is_refused_with_advice(tmp_path):
    with pytest.raises(ModelError, match=r"No existing fast tokenizer \(tokenizer\.json\) found in .*save_pretrained"):
        Tokenizer.load(tmp_path, num_workers=1)


def test_a_broken_tokenizer_json_is_refused(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{")

    with pytest.raises(ModelError, match=r"tokenizer\.json cannot be read"):
        Tokenizer.load(tmp_path, num_workers=1)
