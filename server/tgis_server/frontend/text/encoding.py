"""Encodes a text of any length in jobs of bounded time and memory.

The library needs 300 to 400 bytes per token while it works on a text, and cannot be interrupted. So a long text is
encoded in overlapping windows, and each overlap is encoded again on its own::

    window 0   [....................~~~~~]
    overlap                         [~~~~~]
    window 1                        [~~~~~....................~~~~~]
    cut                                ^

If the end of the overlap has the same tokens as the end of the left window, the text before the overlap does not affect
them. If the beginning of the overlap has the same tokens as the beginning of the right window, the text after the
overlap does not affect them. If both are true around the middle of the overlap, the windows are cut there. Otherwise
(a single word of a megabyte, say) the text is encoded whole, as short texts always are.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import tokenizers

WINDOW = 32_768  # characters; a job of about 20 ms
OVERLAP = 2_048  # characters that a window reads beyond its end
MIN_OVERLAP_TOKENS = 32


class Encoding(NamedTuple):  # one per text: cheaper than a frozen dataclass
    """The tokens of a text or of a window of it."""

    ids: Sequence[int]
    num_prefix: int  # leading special tokens, which the tokenizer puts before any text
    num_suffix: int  # trailing special tokens, which it puts after any text
    starts: Sequence[int]  # start of each token, in characters of the whole text; empty unless requested
    ends: Sequence[int]


@dataclass(frozen=True, slots=True)
class Window:
    encoding: Encoding
    overlap_ids: Sequence[int]  # tokens of its first OVERLAP characters encoded alone, without special tokens


def encode(tokenizer: tokenizers.Tokenizer, text: str, *, want_offsets: bool) -> Encoding:
    """Encode a text in one go. The library raises plain ``Exception``."""
    # The batch methods release the GIL; the fast one has no offsets.
    [encoded] = tokenizer.encode_batch([text]) if want_offsets else tokenizer.encode_batch_fast([text])
    ids, is_special = encoded.ids, encoded.special_tokens_mask
    num_prefix = is_special.index(0) if 0 in is_special else len(ids)
    num_suffix = is_special[::-1].index(0) if num_prefix < len(ids) else 0
    starts, ends = zip(*encoded.offsets, strict=True) if want_offsets and ids else ((), ())
    return Encoding(ids, num_prefix, num_suffix, starts, ends)


def window_starts(num_characters: int) -> range:
    """The start of each window of a text."""
    return range(0, max(1, num_characters - OVERLAP), WINDOW)


def encode_window(tokenizer: tokenizers.Tokenizer, text: str, start: int, *, want_offsets: bool) -> Window:
    """Encode the window of ``text`` that begins at ``start``. The result is packed: there may be many windows."""
    encoding = encode(tokenizer, text[start : start + WINDOW + OVERLAP], want_offsets=want_offsets)
    overlap_ids = pack(())
    if start:
        overlap = encode(tokenizer, text[start : start + OVERLAP], want_offsets=False)
        overlap_ids = pack(overlap.ids[overlap.num_prefix : len(overlap.ids) - overlap.num_suffix])
    return Window(
        Encoding(
            pack(encoding.ids),
            encoding.num_prefix,
            encoding.num_suffix,
            pack([start + offset for offset in encoding.starts]),
            pack([start + offset for offset in encoding.ends]),
        ),
        overlap_ids,
    )


def join(windows: Sequence[Window]) -> Encoding | None:
    """The encoding of the whole text, or None if neighbouring windows disagree."""
    first, last = windows[0].encoding, windows[-1].encoding
    begins, ends = [0], []
    for left, right in pairwise(windows):
        if (cut := find_cut(left, right)) is None:
            return None
        ends.append(cut[0])
        begins.append(cut[1])
    ends.append(len(last.ids))
    ids, token_starts, token_ends = pack(()), pack(()), pack(())
    for window, begin, end in zip(windows, begins, ends, strict=True):
        ids.extend(window.encoding.ids[begin:end])
        token_starts.extend(window.encoding.starts[begin:end])
        token_ends.extend(window.encoding.ends[begin:end])
    if token_starts and last.num_suffix:
        token_starts[-last.num_suffix :] = token_ends[-last.num_suffix :] = pack([0] * last.num_suffix)
    return Encoding(ids, first.num_prefix, last.num_suffix, token_starts, token_ends)


def find_cut(left: Window, right: Window) -> tuple[int, int] | None:
    """Where ``left`` ends and ``right`` continues: an index into the tokens of each."""
    overlap_ids, left_ids, right_ids = right.overlap_ids, left.encoding.ids, right.encoding.ids
    num_ids = len(overlap_ids)
    if num_ids < MIN_OVERLAP_TOKENS:
        return None
    margin = num_ids // 4
    left_begin = len(left_ids) - left.encoding.num_suffix - num_ids
    right_begin = right.encoding.num_prefix
    if left_begin < 0 or (
        left_ids[left_begin + margin : left_begin + num_ids] != overlap_ids[margin:]
        or right_ids[right_begin : right_begin + num_ids - margin] != overlap_ids[: num_ids - margin]
    ):
        return None
    left_cut, right_cut = left_begin + num_ids // 2, right_begin + num_ids // 2
    if left.encoding.starts and left.encoding.starts[left_cut] != right.encoding.starts[right_cut]:
        return None  # if a tokenizer drops characters, the library's offsets do not count them
    return left_cut, right_cut


def pack(numbers: Iterable[int]) -> array[int]:
    return array("I", numbers)


def byte_offsets(text: str, starts: Sequence[int], ends: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Convert offsets in characters, which are nearly in order, to offsets in the text's UTF-8."""
    if text.isascii():
        yield from zip(starts, ends, strict=True)
        return
    character = byte = 0
    for start, end in zip(starts, ends, strict=True):
        if end == 0:  # a special token
            yield 0, 0
            continue
        if start >= character:
            byte += len(text[character:start].encode())
        else:
            byte -= len(text[start:character].encode())
        character = start
        yield byte, byte + len(text[start:end].encode())
