"""Token ids to text, one token at a time.

Each vocabulary piece contributes the same bytes whatever precedes or follows it: those that it adds after another
token. This keeps the leading space of an output's first word. The text of a request is the UTF-8 of these bytes in
order, so the pieces of a stream add up to the whole text by construction, and the cost of a token depends only on its
own bytes.

Supports byte-level BPE, byte fallback with any replacements (Llama), Metaspace, WordPiece and end-of-word BPE. The
``tokenizers`` library applies the replacements of a decoder, once for each piece that occurs.
"""

from __future__ import annotations

import codecs
import json
import re
from typing import Any

import tokenizers

from tgis_server import failures

BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
SUPPORTED_DECODERS = frozenset(
    {"ByteLevel", "ByteFallback", "Fuse", "Metaspace", "Replace", "Strip", "WordPiece", "BPEDecoder"}
)
REPLACEMENT = "\ufffd"  # replaces bytes that are not valid text
NEIGHBOUR = "a"  # precedes a piece when the library decodes it; no decoder changes a plain letter

Utf8Decoder = codecs.getincrementaldecoder("utf-8")


class PieceDecoder:
    """The bytes that each token of a vocabulary adds to the text. One per server, shared by all requests."""

    def __init__(self, tokenizer: tokenizers.Tokenizer, *, output_special_tokens: bool = False) -> None:
        """Read the tokenizer's decoder.

        Raises:
            ModelError: the decoder cannot work token by token.
        """
        self._tokenizer = tokenizer
        decoder = json.loads(tokenizer.decoder.__getstate__()) if tokenizer.decoder else None
        self._kinds = decoder_kinds(decoder)
        unsupported = self._kinds - SUPPORTED_DECODERS
        if unsupported:
            raise failures.DECODER_NOT_SUPPORTED.error(
                found=", ".join(sorted(unsupported)), supported=", ".join(sorted(SUPPORTED_DECODERS))
            )
        self._word_end = decoder["suffix"] if decoder and "BPEDecoder" in self._kinds else ""
        self._skipped = frozenset() if output_special_tokens else special_ids(tokenizer)
        self._contributions: dict[int, bytes] = {}
        self._texts: dict[int, str | None] = {}

    @property
    def ends_words_with_a_space(self) -> bool:
        """Whether a space at the end of a contribution belongs to the text only if another token follows."""
        return bool(self._word_end)

    def get_bytes(self, token_id: int) -> bytes:
        """The bytes that this token appends to the text; they may end inside a character."""
        contribution = self._contributions.get(token_id)
        if contribution is None:
            contribution = self._contributions[token_id] = self._decode(token_id)
        return contribution

    def get_text(self, token_id: int) -> str | None:
        """The characters that this token appends to a text of whole characters; None if that depends on the text."""
        try:
            return self._texts[token_id]
        except KeyError:
            text = self._texts[token_id] = self._decode_alone(token_id)
            return text

    def _decode_alone(self, token_id: int) -> str | None:
        if self.ends_words_with_a_space:
            return None
        text = self.get_bytes(token_id).decode(errors="replace")
        return None if REPLACEMENT in text else text

    def _decode(self, token_id: int) -> bytes:
        piece = self._tokenizer.id_to_token(token_id)
        if piece is None or token_id in self._skipped:
            return b""
        if "ByteLevel" in self._kinds:
            return decode_byte_level(piece)
        if "ByteFallback" in self._kinds and (match := BYTE_PIECE.fullmatch(piece)):
            return bytes([int(match[1], 16)])
        if self._word_end:
            return str(piece).replace(self._word_end, " ").encode()
        if not self._kinds:
            return f" {piece}".encode()
        decoded: str = self._tokenizer.decoder.decode([NEIGHBOUR, piece])
        return decoded.removeprefix(NEIGHBOUR).encode()


class Detokenizer:
    """Builds the text of one output; the returned strings add up to the text.

    An unfinished character at the end is left out. Invalid bytes become U+FFFD only when further text follows.
    """

    def __init__(self, pieces: PieceDecoder) -> None:
        self._pieces = pieces
        self._utf8 = Utf8Decoder("replace")
        self._space = b""  # a word's trailing space, due when another token follows
        self._broken = ""  # U+FFFD at the end of the decoded text
        self._is_between_characters = True  # nothing is pending: no part of a character, no space, no U+FFFD

    def push(self, token_id: int) -> str:
        """The characters that this token completes: none, one or several."""
        if self._is_between_characters and (text := self._pieces.get_text(token_id)) is not None:
            return text
        return self._push_bytes(token_id)

    def _push_bytes(self, token_id: int) -> str:
        contribution = self._pieces.get_bytes(token_id)
        if self._pieces.ends_words_with_a_space and contribution:
            has_space = contribution.endswith(b" ")
            contribution, self._space = self._space + contribution.removesuffix(b" "), b" " if has_space else b""
        decoded = self._utf8.decode(contribution)
        text = decoded.rstrip(REPLACEMENT)
        broken, self._broken = (self._broken, "") if text else ("", self._broken)
        self._broken += decoded[len(text) :]
        self._is_between_characters = not (self._broken or self._space or self._utf8.getstate()[0])
        return broken + text


def decoder_kinds(decoder: dict[str, Any] | None) -> frozenset[str]:
    """The type of a decoder, or the types of its parts if it is a sequence; empty without a decoder."""
    if decoder is None:
        return frozenset()
    if decoder["type"] == "Sequence":
        return frozenset().union(*(decoder_kinds(part) for part in decoder["decoders"]))
    return frozenset({decoder["type"]})


def special_ids(tokenizer: tokenizers.Tokenizer) -> frozenset[int]:
    return frozenset(i for i, token in tokenizer.get_added_tokens_decoder().items() if token.special)


def decode_byte_level(piece: str) -> bytes:
    """Undo the byte-to-character map of byte-level BPE; any other piece (an added token) stands for its UTF-8."""
    try:
        return bytes([BYTE_OF_CHARACTER[character] for character in piece])
    except KeyError:
        return piece.encode()


def byte_level_alphabet() -> dict[str, int]:
    """GPT-2's map: visible Latin-1 characters stand for their own bytes; those from U+0100 on stand for the others."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(0x100) if byte not in visible]
    return {chr(byte): byte for byte in visible} | {chr(0x100 + i): byte for i, byte in enumerate(hidden)}


BYTE_OF_CHARACTER = byte_level_alphabet()
