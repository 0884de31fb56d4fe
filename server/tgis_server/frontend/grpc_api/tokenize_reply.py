"""The answer of the Tokenize RPC, serialized in slices: a message with millions of tokens would take gigabytes.

Parsing concatenated protobuf messages merges them and appends to repeated fields, so a response may come in pieces.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import NamedTuple

from tgis_server.frontend.text import Encoding, byte_offsets
from tgis_server.wire import generation_pb2 as pb

SLICE = 4096  # tokens: they take a few milliseconds
RESPONSES_TAG = bytes([pb.BatchedTokenizeResponse.RESPONSES_FIELD_NUMBER << 3 | 2])  # 2: length-delimited


class ReplyPart(NamedTuple):
    """A piece of a serialized ``TokenizeResponse``; the first has the ``num_tokens`` of the text, the others have 0."""

    num_tokens: int
    content: bytes


def reply_parts(
    request: pb.BatchedTokenizeRequest, get_piece: Callable[[int], str], text: str, encoding: Encoding
) -> Iterator[ReplyPart]:
    """The response for one text, in pieces. If requested, it has only the text's last tokens, special ones included."""
    num_tokens = len(encoding.ids)
    first = max(0, num_tokens - request.truncate_input_tokens) if request.truncate_input_tokens else 0
    ids, starts, ends = encoding.ids[first:], encoding.starts[first:], encoding.ends[first:]
    offsets = byte_offsets(text, starts, ends) if request.return_offsets else iter(())
    for begin in range(0, len(ids) or 1, SLICE):
        part = ids[begin : begin + SLICE]
        response = pb.TokenizeResponse(token_count=0 if begin else len(ids))
        if request.return_tokens:
            pieces = {token_id: get_piece(token_id) for token_id in set(part)}
            response.tokens.extend([pieces[token_id] for token_id in part])
        for start, end in islice(offsets, SLICE):
            response.offsets.add(start=start, end=end)
        yield ReplyPart(response.token_count, response.SerializeToString())


def join_replies(replies: Sequence[Sequence[ReplyPart]]) -> bytes:
    """A serialized ``BatchedTokenizeResponse``."""
    chunks = []
    for parts in replies:
        chunks += [RESPONSES_TAG, encode_varint(sum(len(part.content) for part in parts))]
        chunks += [part.content for part in parts]
    return b"".join(chunks)


def encode_varint(number: int) -> bytes:
    """https://protobuf.dev/programming-guides/encoding/#varints"""
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)
