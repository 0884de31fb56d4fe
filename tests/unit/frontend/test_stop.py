"""The first completed stop sequence ends the text, however the text is divided into tokens."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tgis_server.frontend.text import StopMatcher, StopSequences

texts = st.text("ab✓", max_size=30)
stop_lists = st.lists(st.text("ab✓", min_size=1, max_size=5), min_size=1, max_size=6)


@st.composite
def divided_texts(draw: st.DrawFn) -> list[str]:
    """A text in pieces; some are empty."""
    text = draw(texts)
    cuts = sorted(draw(st.lists(st.integers(0, len(text)), max_size=10)))
    return [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]


def run(sequences: list[str], pieces: list[str], *, include: bool, num_ignored: int = 0) -> tuple[list[str], str]:
    """The text sent for each piece (and at the end), and the match. Matches in the first pieces do not count."""
    matcher = StopMatcher(StopSequences(sequences), include=include)
    sent = []
    for index, piece in enumerate(pieces):
        text, match = matcher.push(piece, can_match=index >= num_ignored)
        sent.append(text)
        if match:
            return sent, match
    return [*sent, matcher.flush()], ""


def search(sequences: list[str], text: str, *, include: bool, ignored: int = 0) -> tuple[str, str]:
    """The definition: the smallest end after ``ignored``, then the longest sequence that ends there."""
    for end in range(ignored + 1, len(text) + 1):
        matches = [sequence for sequence in sequences if text[:end].endswith(sequence)]
        if matches:
            match = max(matches, key=len)
            return (text[:end] if include else text[: end - len(match)]), match
    return text, ""


@given(sequences=stop_lists, pieces=divided_texts(), include=st.booleans())
@example(sequences=["ab", "b"], pieces=["a", "b"], include=False)
def test_the_output_equals_a_search_in_the_whole_text(sequences, pieces, include):
    sent, match = run(sequences, pieces, include=include)

    assert ("".join(sent), match) == search(sequences, "".join(pieces), include=include)


@given(sequences=stop_lists, pieces=divided_texts(), include=st.booleans(), num_ignored=st.integers(0, 5))
def test_matches_completed_too_early_are_ignored_and_not_found_later(sequences, pieces, include, num_ignored):
    ignored = len("".join(pieces[:num_ignored]))

    sent, match = run(sequences, pieces, include=include, num_ignored=num_ignored)

    assert ("".join(sent), match) == search(sequences, "".join(pieces), include=include, ignored=ignored)


@given(sequences=stop_lists, pieces=divided_texts())
def test_text_is_held_back_exactly_while_it_may_become_part_of_a_match(sequences, pieces):
    matcher = StopMatcher(StopSequences(sequences), include=False)
    so_far = sent = ""
    for piece in pieces:
        text, match = matcher.push(piece)
        if match:
            break
        so_far, sent = so_far + piece, sent + text
        beginnings = {sequence[:length] for sequence in sequences for length in range(len(sequence))}
        longest = max((end for end in beginnings if so_far.endswith(end)), key=len)
        assert so_far == sent + longest


@given(sequences=stop_lists, pieces=divided_texts())
def test_nothing_is_held_back_if_the_stop_sequence_stays_in_the_output(sequences, pieces):
    sent, _ = run(sequences, pieces, include=True)

    assert sent[:-1] == pieces[: len(sent) - 1]  # the last one is cut at the match, or empty


@pytest.mark.parametrize(
    ("sequences", "pieces", "include", "sent", "match"),
    [
        (["STOP"], ["one ", "ST", "OP", " two"], True, ["one ", "ST", "OP"], "STOP"),
        (["STOP"], ["one ", "ST", "OP", " two"], False, ["one ", "", ""], "STOP"),
        (["STOP"], ["one ", "ST", "AR"], False, ["one ", "", "STAR", ""], ""),
        (["STOP"], ["one ", "ST"], False, ["one ", "", "ST"], ""),
        (["STOP"], ["xSTOPy"], True, ["xSTOP"], "STOP"),
        (["late", "a"], ["la"], True, ["la"], "a"),  # the first to be completed, not the first in the list
        (["b", "ab"], ["ab"], False, [""], "ab"),  # completed together: the longer one
        (["\n\n"], ["a\n", "\nb"], False, ["a", ""], "\n\n"),
        (["aab"], ["aa", "ab"], False, ["", "a"], "aab"),
        (["été"], ["l'é", "té"], True, ["l'é", "té"], "été"),
    ],
)
def test_the_first_sequence_to_be_completed_ends_the_text(sequences, pieces, include, sent, match):
    assert run(sequences, pieces, include=include) == (sent, match)


def test_a_match_ignored_for_min_new_tokens_does_not_hold_back_its_text():
    matcher = StopMatcher(StopSequences(["ab"]), include=False)

    assert matcher.push("ab", can_match=False) == ("ab", "")


def test_a_match_that_began_too_early_but_ends_in_time_counts():
    matcher = StopMatcher(StopSequences(["abc"]), include=False)

    assert matcher.push("xab", can_match=False) == ("x", "")
    assert matcher.push("c") == ("", "abc")


def test_a_long_run_of_near_matches_costs_no_more_per_character():
    matcher = StopMatcher(StopSequences(["a" * 240 + "b"]), include=False)

    sent = [matcher.push("a" * 1000)[0] for _ in range(100)]

    assert sum(map(len, sent)) == 100 * 1000 - 240
