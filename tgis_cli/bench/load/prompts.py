"""Texts that have exactly as many tokens as asked for, as the server's own tokenizer counts them.

They are made of words of one token each, so that a text of any length can be made without asking the server again.
Before the run, the server is asked which words those are.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from tgis_server.errors import UsageError

CountTokens = Callable[[list[str]], list[int]]  # of each text, special tokens included

# Frequent enough to be one token in most vocabularies, and different enough to look like text.
WORDS = """
the of and to in is was for on that by this with you it not or be are from at as your all have new more an we will home
can us about if my has but our one other do no information time they site he up may what which their news out use any
there see only so his when here who also now help get view first am been would how were services some these click its
like service than find price date back top people had list name just over state year day into two health world next
used go work last most music buy data make them should product system post her city add policy number such please
available copyright support message after best then good well where info rights public books high school through each
links she review years order very book items company read group need many user said does set under general research
mail full map program life know games way days management part could great united hotel real item center must store
travel comments made development report off member details line terms before did send right type because local those
using results office education national car design take posted internet address community within states area want phone
shipping reserved subject between forum family long based code show even black check special prices website index being
women much sign file link open today technology south case project same pages version section own found sports house
related security both county american photo game members power while care network down computer systems three total
place end following download him without per access think north resources current posts big media law control water
history pictures size art personal since including guide shop directory board location change white text small rating
rate government children during return students shopping account times sites level digital profile previous form events
love old main call hours image department title description insurance another why shall property class still money
quality every listing content country private little visit save tools low reply customer compare movies include college
value article york man card jobs provide food source author different press learn sale around print course canada
process room stock training too credit point join science men categories advanced west sales look english left team
estate box conditions select windows photos thread week category note live large gallery table register however
""".split()  # noqa: SIM905  # shorter than a list of quoted words
LETTERS = tuple("abcdefghijklmnopqrstuvwxyz")  # for vocabularies of bytes or characters
MIN_WORDS = 8  # fewer would make texts that all look alike
NUM_TRIALS = 64  # texts that are counted before the words are trusted
TRIAL_WORDS = 24
MAX_ROUNDS = 8
# Digits of an index in words: three tell millions of prompts apart, and eight hold 60 bits with 200 words.
MIN_DIGITS, MAX_DIGITS = 3, 8


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Words that are one token each, wherever they stand in a text of such words."""

    words: tuple[str, ...]
    joint: str  # between two words
    num_special: int  # tokens that the server adds to each text, such as BOS

    @classmethod
    def find(cls, count_tokens: CountTokens) -> Vocabulary:
        """
        Args:
            count_tokens: asks the server.

        Raises:
            UsageError: this tokenizer has no words like that.
        """
        for candidates, joint in ((tuple(dict.fromkeys(WORDS)), " "), (LETTERS, "")):
            found = pick_words(count_tokens, candidates, joint)
            if found is not None and (kept := keep_exact(found, count_tokens)) is not None:
                return kept
        raise UsageError(
            "This server's tokenizer has no words of one token, so no text of an exact length can be made: give texts "
            "with --prompts FILE."
        )

    def make_words(self, rng: random.Random, num_words: int, number: int | None = None) -> list[str]:
        """So many words, which are as many tokens, special ones not included.

        Args:
            number: spelt by the first words, so that texts with different numbers begin differently.
        """
        first = [] if number is None else self._spell(number, min(num_words, MAX_DIGITS))
        return first + rng.choices(self.words, k=num_words - len(first))

    def _spell(self, number: int, most: int) -> list[str]:
        """A number with words as its digits, the lowest first, and at most this many of them."""
        digits: list[str] = []
        while len(digits) < most and (number or len(digits) < MIN_DIGITS):
            number, digit = divmod(number, len(self.words))
            digits.append(self.words[digit])
        return digits


def pick_words(count_tokens: CountTokens, candidates: Sequence[str], joint: str) -> Vocabulary | None:
    """Those candidates that add one token each, even at the start of a text; ``None`` if they are too few."""
    counts = count_tokens([joint.join([word] * times) for word in candidates for times in (2, 4)])
    offsets = {
        word: twice - 2
        for word, twice, four_times in zip(candidates, counts[::2], counts[1::2], strict=True)
        if four_times - twice == 2
    }
    if not offsets:
        return None
    num_special = Counter(offsets.values()).most_common(1)[0][0]
    words = tuple(word for word, offset in offsets.items() if offset == num_special)
    return Vocabulary(words, joint, num_special) if len(words) >= MIN_WORDS else None


def keep_exact(vocabulary: Vocabulary, count_tokens: CountTokens) -> Vocabulary | None:
    """Drop words until random texts of the others are exact; ``None`` if too few are left.

    Words may merge with a neighbour, in vocabularies whose tokens span blanks. A word is dropped if texts with it are
    wrong more often than others.
    """
    rng = random.Random(0)  # noqa: S311  reproducible
    num_expected = TRIAL_WORDS + vocabulary.num_special
    for _ in range(MAX_ROUNDS):
        trials = [rng.choices(vocabulary.words, k=TRIAL_WORDS) for _ in range(NUM_TRIALS)]
        counts = count_tokens([vocabulary.joint.join(trial) for trial in trials])
        wrong = [trial for trial, count in zip(trials, counts, strict=True) if count != num_expected]
        if not wrong:
            return vocabulary
        seen, blamed = (Counter(word for trial in some for word in set(trial)) for some in (trials, wrong))
        limit = len(wrong) / len(trials)
        kept = tuple(word for word in vocabulary.words if blamed[word] <= limit * seen[word])
        if len(kept) < MIN_WORDS or len(kept) == len(vocabulary.words):
            return None
        vocabulary = replace(vocabulary, words=kept)
    return None
