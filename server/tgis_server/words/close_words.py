"""Which known words a misspelt word may have meant: only close ones, and none rather than a wild guess."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

MOST = 3  # more than this many are a list to read, not a suggestion
MIN_PREFIX = 3  # letters; fewer are enough if only one word starts with them


def find_close(word: str, known: Iterable[str]) -> list[str]:
    """The known words that are close to ``word``, best first.

    Spellings that differ only in dashes, underscores, blanks or case are the same word. Otherwise the start of a word,
    one to three typing errors (by length), or some of the words of a longer name count as close. Only the best
    kind of closeness counts.
    """
    known = list(dict.fromkeys(known))
    typed = squeeze(word)
    if not typed:
        return []
    slips = {each: count_slips(typed, squeeze(each)) for each in known}
    near = sorted((each for each in known if slips[each] <= allowed_slips(typed)), key=slips.__getitem__)
    starts = [each for each in known if squeeze(each).startswith(typed)]
    if len(typed) < MIN_PREFIX and len(starts) > 1:
        starts = []
    same = [each for each in near if not slips[each]]
    parts = [each for each in known if is_part(split(word), split(each))]
    nearest = [each for each in near if slips[each] == slips[near[0]]] if len(near) > MOST else near
    for found in (same, [each for each in near if each in starts], starts, nearest, parts):
        if found:
            return found if len(found) <= MOST else []
    return []


def or_list(words: Sequence[str]) -> str:
    """``a``, ``a or b``, ``a, b or c``."""
    return " or ".join(filter(None, (", ".join(words[:-1]), words[-1])))


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """``Did you mean a or b?``; empty if nothing is close."""
    close = find_close(word, known)
    return f"Did you mean {or_list(close)}?" if close else ""


def squeeze(word: str) -> str:
    return re.sub(r"[-_\s.]", "", word).lower()


def split(word: str) -> list[str]:
    return [part for part in re.split(r"[-_\s./]", word.lower()) if part]


def is_part(typed: Sequence[str], known: Sequence[str]) -> bool:
    """Whether two or more words were typed, and all of them are in the longer name, in this order."""
    rest = iter(known)
    return len(typed) > 1 and len(known) > len(typed) and all(part in rest for part in typed)


def allowed_slips(typed: str) -> int:
    """Short words resemble each other by chance, so two letters allow no slip, and up to five allow one."""
    return 0 if len(typed) < 3 else 1 if len(typed) < 6 else 2 if len(typed) < 10 else 3


def count_slips(left: str, right: str) -> int:
    """How many letters are missing, superfluous, wrong, or swapped with the next one.

    This is the optimal string alignment distance.
    """
    before: list[int] = []
    row = list(range(len(right) + 1))
    for i, a in enumerate(left, 1):
        before, previous, row = row, before, [i]
        for j, b in enumerate(right, 1):
            cost = min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (a != b))
            if i > 1 and j > 1 and a == right[j - 2] and left[i - 2] == b:
                cost = min(cost, previous[j - 2] + 1)
            row.append(cost)
    return row[-1]
