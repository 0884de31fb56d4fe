"""Why an output ends, and what stop sequences do to its text.

The recital's outputs are known by hand: see ``STORIES`` in ``contract_script.py``. Whatever model is served, the rules
are checked on its own answer: a stop sequence cuts the text that the same request gives without it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pytest

from contract_api import WAYS, Api, Frame, asked_of, exactly, pieces, reason, row
from contract_script import BOS, DUCK, STORIES, recited, seed_for
from contract_servers import ONE_SERVER, VARIANTS

ASKED_OF = ONE_SERVER


def ending(answer: Frame) -> tuple[str, str, str, int]:
    """What a stop sequence decides: the text, the reason, the stop sequence returned, and the count of tokens."""
    return answer.text, reason(answer), answer.stop_sequence, answer.generated_token_count


def stopped(text: str, stop_sequence: str, count: int) -> tuple[str, str, str, int]:
    return text, "STOP_SEQUENCE", stop_sequence, count


# Reasons


@pytest.mark.parametrize("way", WAYS)
@row("stop-EOS_TOKEN")
def test_the_end_token_ends_the_output_and_has_no_text(recital: Api, way: str) -> None:
    answer = recital.answer("A", way, generated_tokens=True)

    assert ending(answer) == ("The old duck swims home.", "EOS_TOKEN", "", 7)
    assert pieces(answer)[-1] == "</s>"


@row("stop-EOS_TOKEN-first")
def test_an_output_may_be_nothing_but_its_end(recital: Api) -> None:
    assert ending(recital.answer("F")) == ("", "EOS_TOKEN", "", 1)


@pytest.mark.parametrize("way", WAYS)
@row("stop-EOS_TOKEN-of-several")
def test_each_of_several_end_tokens_ends_the_output(recital: Api, way: str) -> None:
    answer = recital.answer("J", way, generated_tokens=True)

    assert ending(answer) == ("adieu", "EOS_TOKEN", "", 2)
    assert pieces(answer)[-1] == "<end>"


@row("stop-EOS_TOKEN-of-several-not-below-min_new_tokens")
def test_none_of_several_end_tokens_is_chosen_below_min_new_tokens(recital: Api) -> None:
    answers = recital.generate("A", "J", min_new_tokens=10, max_new_tokens=12, generated_tokens=True)

    assert [answer.generated_token_count >= 10 for answer in answers] == [True, True]
    assert not {"</s>", "<end>"} & {piece for answer in answers for piece in pieces(answer)[:10]}


@row("stop-EOS_TOKEN-before-MAX_TOKENS")
def test_an_end_token_that_is_the_last_allowed_one_counts_as_the_end(recital: Api) -> None:
    assert reason(recital.answer("A", max_new_tokens=7)) == "EOS_TOKEN"


@row("stop-MAX_TOKENS")
def test_the_limit_ends_the_output(recital: Api) -> None:
    assert ending(recital.answer("A", max_new_tokens=6)) == ("The old duck swims home.", "MAX_TOKENS", "", 6)


@pytest.mark.parametrize("way", WAYS)
@row("stop-TOKEN_LIMIT-explicit")
def test_a_context_that_ends_before_max_new_tokens_is_a_token_limit(recital: Api, way: str) -> None:
    longest = recital.info.max_sequence_length

    answer = recital.answer("C" * 9, way, max_new_tokens=15)

    assert (reason(answer), answer.generated_token_count) == ("TOKEN_LIMIT", longest - 10)


@row("stop-TOKEN_LIMIT-one-token-left")
def test_an_input_that_leaves_one_place_gets_one_token(recital: Api) -> None:
    answer = recital.answer("C" * (recital.info.max_sequence_length - 2), max_new_tokens=2)

    assert ending(answer) == (" one", "TOKEN_LIMIT", "", 1)


@row("stop-MAX_TOKENS-exactly-the-context")
def test_a_limit_that_just_fits_is_not_lowered(recital: Api) -> None:
    longest = recital.info.max_sequence_length

    answer = recital.answer("C" * 9, max_new_tokens=longest - 10)

    assert (reason(answer), answer.generated_token_count) == ("MAX_TOKENS", longest - 10)


@row("stop-EOS_TOKEN-before-TOKEN_LIMIT")
def test_an_end_token_in_the_last_place_of_the_context_counts_as_the_end(recital: Api) -> None:
    filler = recital.info.max_sequence_length - 7 - 2

    assert reason(recital.answer("x" * filler + "A", max_new_tokens=18)) == "EOS_TOKEN"


@asked_of(*VARIANTS)
@row("stop-TOKEN_LIMIT-any-model")
def test_the_served_model_ends_where_its_context_does(api: Api) -> None:
    longest = min(api.info.max_sequence_length, 100_000)

    answer = api.answer(" a" * longest, truncate_input_tokens=longest - 4, **{**exactly(4), "max_new_tokens": 5})

    assert (reason(answer), answer.generated_token_count) == ("TOKEN_LIMIT", 4)


# Stop sequences in known texts. A: "The old duck swims home."; B: "Hi 🦆! bye"; D: "xab" "cab" "cde" "f"


@dataclass(frozen=True)
class Cut:
    """Where an output must end: after ``match``, which follows ``before``."""

    story: str
    stops: list[str]
    before: str
    match: str
    count: int  # tokens, including that of the last character

    def text(self, *, include: bool) -> str:
        return self.before + self.match if include else self.before


CUTS = {
    "one-whole-token": Cut("A", [" duck"], "The old", " duck", 3),
    "inside-a-token": Cut("A", ["wim"], "The old duck s", "wim", 4),
    "over-two-tokens": Cut("A", ["ck sw"], "The old du", "ck sw", 4),
    "over-four-tokens": Cut("A", ["d duck swims h"], "The ol", "d duck swims h", 5),
    "first-character": Cut("A", ["T"], "", "T", 1),
    "whole-text": Cut("A", ["The old duck swims home."], "", "The old duck swims home.", 6),
    "earliest-of-several": Cut("A", ["home", "duck", "swims"], "The old ", "duck", 3),
    "earliest-whatever-the-order": Cut("A", ["swims", "old"], "The ", "old", 2),
    "earliest-of-two-in-one-token": Cut("A", ["ms", "sw"], "The old duck ", "sw", 4),
    "prefix-of-another": Cut("A", ["duck swims", "duck"], "The old ", "duck", 3),
    "prefix-of-another-listed-first": Cut("A", ["duck", "duck swims"], "The old ", "duck", 3),
    "end-of-another": Cut("A", ["ck", "duck"], "The old ", "duck", 3),
    "first-of-two-occurrences": Cut("D", ["ab"], "x", "ab", 1),
    "begins-again-within-itself": Cut("D", ["abcd"], "xabc", "abcd", 3),
    "takes-over-from-another": Cut("D", ["abcx", "bca"], "xa", "bca", 2),
    "inside-an-unfinished-one": Cut("D", ["abcabx", "ca"], "xab", "ca", 2),
    "case-counts": Cut("A", ["DUCK", "the", "home"], "The old duck swims ", "home", 5),
    "given-twice": Cut("A", ["duck", "duck"], "The old ", "duck", 3),
    "emoji": Cut("B", [DUCK], "Hi ", DUCK, 6),
    "emoji-with-neighbours": Cut("B", [f" {DUCK}!"], "Hi", f" {DUCK}!", 7),
    "behind-an-emoji": Cut("B", ["bye"], f"Hi {DUCK}! ", "bye", 8),
    "around-a-special-token": Cut("E", ["rta"], "sta", "rta", 3),
}
ENDS = [pytest.param(True, id="include"), pytest.param(False, id="exclude")]


@pytest.mark.parametrize("include", ENDS)
@pytest.mark.parametrize("cut", [pytest.param(cut, id=f"stop-{name}") for name, cut in CUTS.items()])
def test_an_output_ends_with_the_first_stop_sequence(recital: Api, cut: Cut, include: bool) -> None:
    fields = {"stop_sequences": cut.stops, "include_stop_sequence": include}

    answers = [recital.answer(cut.story, way, **fields) for way in WAYS]

    assert [ending(answer) for answer in answers] == [stopped(cut.text(include=include), cut.match, cut.count)] * 3


@pytest.mark.parametrize("include", ENDS)
@row("stop-completed-by-the-last-allowed-token")
def test_a_stop_sequence_that_the_last_allowed_token_completes_counts(recital: Api, include: bool) -> None:
    fields = {"stop_sequences": ["duck"], "include_stop_sequence": include, "max_new_tokens": 3}

    answers = [recital.answer("A", way, **fields) for way in WAYS]

    expected = "The old duck" if include else "The old "
    assert [ending(answer) for answer in answers] == [stopped(expected, "duck", 3)] * 3


@pytest.mark.parametrize("include", ENDS)
@row("stop-completed-by-the-last-token-of-the-context")
def test_a_stop_sequence_at_the_end_of_the_context_counts(recital: Api, include: bool) -> None:
    filler = "x" * (recital.info.max_sequence_length - 3 - 2)

    answer = recital.answer(f"{filler}A", max_new_tokens=10, stop_sequences=["duck"], include_stop_sequence=include)

    assert ending(answer) == stopped("The old duck" if include else "The old ", "duck", 3)


@pytest.mark.parametrize("way", WAYS)
@row("stop-never-completed")
def test_a_stop_sequence_that_never_comes_changes_nothing(recital: Api, way: str) -> None:
    answer = recital.answer("A", way, stop_sequences=["homes", "swimming", "The End"], include_stop_sequence=False)

    assert ending(answer) == ("The old duck swims home.", "EOS_TOKEN", "", 7)


@pytest.mark.parametrize("way", WAYS)
@row("stop-half-completed-at-the-limit")
def test_text_that_was_held_back_comes_when_the_limit_ends_the_output(recital: Api, way: str) -> None:
    fields = {"stop_sequences": ["duck swims home!"], "include_stop_sequence": False, "max_new_tokens": 4}

    assert ending(recital.answer("A", way, **fields)) == ("The old duck swims", "MAX_TOKENS", "", 4)


@pytest.mark.parametrize("way", WAYS)
@row("stop-ignored-during-min_new_tokens")
def test_a_stop_sequence_completed_below_min_new_tokens_is_ignored(recital: Api, way: str) -> None:
    fields = {"stop_sequences": ["duck"], "include_stop_sequence": False, "min_new_tokens": 4}

    assert ending(recital.answer("A", way, **fields)) == ("The old duck swims home.", "EOS_TOKEN", "", 7)


@pytest.mark.parametrize("way", WAYS)
@row("stop-later-occurrence-behind-min_new_tokens")
def test_a_later_occurrence_counts_once_there_are_min_new_tokens(recital: Api, way: str) -> None:
    fields = {"stop_sequences": ["two"], "include_stop_sequence": False, "min_new_tokens": 4}

    assert ending(recital.answer("C", way, **fields)) == stopped(" one two three one ", "two", 5)


@row("stop-completed-at-min_new_tokens")
def test_a_stop_sequence_completed_by_the_last_required_token_counts(recital: Api) -> None:
    answer = recital.answer("A", stop_sequences=["duck"], include_stop_sequence=True, min_new_tokens=3)

    assert ending(answer) == stopped("The old duck", "duck", 3)


@row("stop-begun-below-min_new_tokens")
def test_a_stop_sequence_may_begin_below_min_new_tokens(recital: Api) -> None:
    answer = recital.answer("A", stop_sequences=["duck sw"], include_stop_sequence=False, min_new_tokens=4)

    assert ending(answer) == stopped("The old ", "duck sw", 4)


@row("stop-input-is-not-searched")
def test_the_input_is_not_searched(recital: Api) -> None:
    answer = recital.answer("duck A", stop_sequences=["duck A", "ATh"], input_text=True)

    assert ending(answer) == ("duck AThe old duck swims home.", "EOS_TOKEN", "", 7)


@row("stop-echoed-input-is-not-cut")
def test_only_the_output_is_cut(recital: Api) -> None:
    answer = recital.answer("duck A", stop_sequences=["duck"], input_text=True, include_stop_sequence=False)

    assert ending(answer) == stopped("duck AThe old ", "duck", 3)


@row("stop-special-tokens-have-no-text")
def test_the_end_token_cannot_be_a_stop_sequence(recital: Api) -> None:
    assert ending(recital.answer("A", stop_sequences=["</s>"])) == ("The old duck swims home.", "EOS_TOKEN", "", 7)


@pytest.mark.parametrize("way", WAYS)
@row("stop-tokens-are-not-cut")
def test_tokens_and_their_count_include_what_was_cut_from_the_text(recital: Api, way: str) -> None:
    fields = {"stop_sequences": ["old duck sw"], "include_stop_sequence": False, "generated_tokens": True}

    answer = recital.answer("A", way, **fields)

    assert ending(answer) == stopped("The ", "old duck sw", 4)
    assert pieces(answer) == ["The", "Ġold", "Ġduck", "Ġswims"]


@row("stop-default-include-off")
def test_a_server_may_exclude_stop_sequences_by_default(recital: Api) -> None:
    assert ending(recital.answer("A", stop_sequences=["duck"])) == stopped("The old ", "duck", 3)


# Stop sequences in what the served model says


@dataclass(frozen=True)
class Said:
    """A model's own answer, and the text that each token added to it."""

    prompt: str
    parts: list[str]

    @property
    def text(self) -> str:
        return "".join(self.parts)

    def from_to(self, first: int, last: int) -> str:
        return "".join(self.parts[first:last])

    def expected(self, stops: Sequence[str], *, include: bool, min_new_tokens: int = 0) -> tuple[str, str, str, int]:
        """Read the answer character by character, as the contract describes."""
        count, text = 0, ""
        for count, part in enumerate(self.parts, start=1):
            for character in part:
                text += character
                found = max((stop for stop in stops if text.endswith(stop)), key=len, default="")
                if found and count >= min_new_tokens:
                    return stopped(text if include else text.removesuffix(found), found, count)
        return text, "MAX_TOKENS", "", count


@pytest.fixture(scope="module")
def said(api: Api, prompt: str) -> Said:
    frames = api.stream(prompt, max_new_tokens=14, generated_tokens=True)
    parts = [frame.text for frame in frames if frame.tokens]
    if len(parts) < 14 or not all(parts):
        pytest.skip("the answer has tokens without text")
    return Said(prompt, parts)


CHOICES: dict[str, Callable[[Said], list[str]]] = {
    "a-token": lambda said: [said.parts[5]],
    "over-tokens": lambda said: [said.parts[4][-1] + said.parts[5][:1]],
    "three-tokens": lambda said: [said.from_to(3, 6)],
    "several": lambda said: [said.parts[8], said.from_to(4, 6), said.from_to(6, 9)],
    "prefixes": lambda said: [said.from_to(3, 7), said.from_to(3, 5)],
    "last-token": lambda said: [said.from_to(10, 14)],
    "never": lambda said: [said.from_to(3, 6) + "\x00", "\x01"],
}


@pytest.mark.parametrize("include", ENDS)
@pytest.mark.parametrize("choose", [pytest.param(choose, id=f"stop-any-{name}") for name, choose in CHOICES.items()])
def test_a_stop_sequence_cuts_the_answer_of_any_model(
    api: Api, said: Said, choose: Callable[[Said], list[str]], include: bool
) -> None:
    stops = choose(said)
    fields = {"stop_sequences": stops, "include_stop_sequence": include, "max_new_tokens": 14}

    answers = [api.answer(said.prompt, way, **fields) for way in WAYS]

    assert [ending(answer) for answer in answers] == [said.expected(stops, include=include)] * 3


@row("stop-any-min_new_tokens")
def test_min_new_tokens_delays_the_stop_sequences_of_any_model(api: Api, said: Said) -> None:
    stops = [said.parts[2], said.parts[9]]

    answer = api.answer(
        said.prompt, stop_sequences=stops, min_new_tokens=6, max_new_tokens=14, include_stop_sequence=True
    )

    assert ending(answer) == said.expected(stops, include=True, min_new_tokens=6)


@row("stop-default-include-on")
def test_stop_sequences_stay_in_the_text_by_default(api: Api, said: Said) -> None:
    stops = [said.from_to(2, 4)]

    answer = api.answer(said.prompt, stop_sequences=stops, max_new_tokens=14)

    assert ending(answer) == said.expected(stops, include=True)


# The end of the text in the presence of special and broken tokens


@pytest.mark.parametrize("way", WAYS)
@row("text-special-tokens-are-left-out")
def test_special_tokens_within_an_output_have_no_text(recital: Api, way: str) -> None:
    answer = recital.answer("E", way, generated_tokens=True)

    assert (answer.text, pieces(answer)) == ("startafter", ["start", "<s>", "after", "</s>"])


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("count", "expected"),
    [pytest.param(n, "Hi ", id=f"text-ends-within-a-character-after-{n - 2}-of-4-bytes") for n in (3, 4, 5)],
)
def test_an_unfinished_character_at_the_end_is_left_out(recital: Api, way: str, count: int, expected: str) -> None:
    assert ending(recital.answer("B", way, max_new_tokens=count)) == (expected, "MAX_TOKENS", "", count)


@pytest.mark.parametrize("way", WAYS)
@row("text-finished-character")
def test_a_character_made_of_four_tokens_comes_whole(recital: Api, way: str) -> None:
    assert ending(recital.answer("B", way, max_new_tokens=6)) == (f"Hi {DUCK}", "MAX_TOKENS", "", 6)


@pytest.mark.parametrize("way", WAYS)
@row("text-broken-byte")
def test_a_byte_that_is_not_text_becomes_a_replacement_character(recital: Api, way: str) -> None:
    assert ending(recital.answer("I", way)) == ("ok\ufffdgo", "EOS_TOKEN", "", 4)


@pytest.mark.parametrize("way", WAYS)
@row("text-broken-byte-at-the-end")
def test_replacement_characters_at_the_end_are_trimmed(recital: Api, way: str) -> None:
    assert ending(recital.answer("I", way, max_new_tokens=2)) == ("ok", "MAX_TOKENS", "", 2)


@pytest.mark.parametrize("way", WAYS)
@row("text-leading-space")
def test_the_leading_space_of_the_first_token_is_kept(recital: Api, way: str) -> None:
    assert recital.answer("C", way, max_new_tokens=2).text == " one two"


@pytest.mark.parametrize("story", [pytest.param(key, id=f"text-of-story-{key}") for key in STORIES])
def test_the_recital_recites_its_stories(recital: Api, story: str) -> None:
    answers = [recital.answer(story, way, max_new_tokens=10) for way in WAYS]

    assert [answer.text for answer in answers] == [recited(story, 10)] * 3


@pytest.mark.parametrize("way", WAYS)
@row("text-special-tokens-are-kept-where-configured")
def test_a_server_may_keep_special_tokens_in_the_text(slow: Api, way: str) -> None:
    answer = slow.answer("A", way, seed=seed_for("A", BOS), max_new_tokens=1, generated_tokens=True)

    assert (answer.text, pieces(answer)) == ("<s>", ["<s>"])
