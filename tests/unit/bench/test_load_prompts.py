"""Prompts of exact lengths, with tokenizers of several kinds."""

from __future__ import annotations

import itertools
import pickle
import random
import re
from collections.abc import Callable

import pytest

from tgis_cli.bench.load.feed import CallShape, SyntheticFeed
from tgis_cli.bench.load.prompts import MIN_WORDS, Vocabulary
from tgis_cli.bench.load.shapes import Lengths
from tgis_cli.clients.parameters import Parameters
from tgis_server.errors import UsageError
from tgis_server.wire import generation_pb2 as pb

Count = Callable[[str], int]


def count_words(text: str) -> int:
    """With BOS; a word of at most five letters is one token, a longer one is two."""
    return 1 + sum(1 if len(word) <= 5 else 2 for word in text.split())


def count_words_that_merge(text: str) -> int:
    """Neighbours that both begin with t share a token."""
    words = text.split()
    return len(words) - sum(one[0] == other[0] == "t" for one, other in itertools.pairwise(words))


def count_bytes(text: str) -> int:
    return len(text.encode()) + 2


def count_with_a_first_word_apart(text: str) -> int:
    """A word without a blank before it is two tokens if it has four letters."""
    words = text.split()
    return len(words) + (len(words[0]) == 4)


def ask(count: Count) -> Callable[[list[str]], list[int]]:
    return lambda texts: [count(text) for text in texts]


TOKENIZERS = [count_words, count_words_that_merge, count_bytes, count_with_a_first_word_apart]


def make_feed(count: Count = count_words, tokens: str = "12:40", **options: int) -> SyntheticFeed:
    shape = CallShape(Parameters(), seed=options.pop("seed", 0))
    return SyntheticFeed(
        shape, Vocabulary.find(ask(count)), Lengths.parse(tokens, "-"), Lengths.parse("5:9", "-"), **options
    )


def read_request(feed: SyntheticFeed, index: int) -> pb.SingleGenerationRequest:
    return pb.SingleGenerationRequest.FromString(feed.make_call(index).body)


def read_text(feed: SyntheticFeed, index: int) -> str:
    return str(read_request(feed, index).request.text)


@pytest.mark.parametrize("count", TOKENIZERS)
def test_prompts_have_the_tokens_that_were_asked_for(count: Count):
    feed = make_feed(count)
    calls = [feed.make_call(index) for index in range(200)]

    texts = [pb.SingleGenerationRequest.FromString(call.body).request.text for call in calls]

    assert [count(text) for text in texts] == [call.input_tokens for call in calls]
    assert len({call.input_tokens for call in calls}) > 20


def test_special_tokens_count():
    assert Vocabulary.find(ask(count_words)).num_special == 1
    assert Vocabulary.find(ask(count_bytes)).num_special == 2


def test_words_that_merge_with_neighbours_are_left_out():
    words = Vocabulary.find(ask(count_words_that_merge)).words

    assert sum(word[0] == "t" for word in words) <= 1
    assert len(words) > 100


def test_a_tokenizer_without_such_words_is_refused():
    with pytest.raises(UsageError, match="--prompts FILE"):
        Vocabulary.find(ask(lambda text: len(text) // 7))


def test_every_prompt_begins_differently():
    feed = make_feed(tokens="20")

    beginnings = {tuple(read_text(feed, index).split()[:3]) for index in range(2000)}

    assert len(beginnings) == 2000


def test_the_salt_changes_the_first_words_only():
    plain, salted = (read_text(make_feed(tokens="30", salt=salt), 7).split() for salt in (0, 12345))

    assert plain[:8] != salted[:8]
    assert " ".join(salted[8:]) in " ".join(plain)


def test_a_shared_prefix_is_the_same_in_all_prompts_and_part_of_their_length():
    feed = make_feed(tokens="30", shared_prefix=20)

    texts = [read_text(feed, index).split() for index in range(50)]

    assert len({tuple(words[:20]) for words in texts}) == 1
    assert len({tuple(words[20:]) for words in texts}) == 50
    assert {count_words(" ".join(words)) for words in texts} == {30}


def test_the_same_seed_gives_the_same_requests_in_every_process():
    feed = make_feed(seed=5)

    again = pickle.loads(pickle.dumps(feed))

    assert [feed.make_call(index) for index in (0, 3, 1 << 33)] == [again.make_call(i) for i in (0, 3, 1 << 33)]


def test_another_seed_gives_other_requests():
    assert read_text(make_feed(seed=1), 3) != read_text(make_feed(seed=2), 3)


def test_outputs_are_forced_to_their_length():
    feed = make_feed()

    lengths = [read_request(feed, index).params.stopping for index in range(50)]

    assert {one.min_new_tokens for one in lengths} == {5, 6, 7, 8, 9}
    assert all(one.min_new_tokens == one.max_new_tokens for one in lengths)


def test_the_prompts_of_one_unary_call_are_counted_together():
    shape = CallShape(Parameters(), is_streamed=False, num_inputs=3)
    vocabulary = Vocabulary.find(ask(count_words))
    feed = SyntheticFeed(shape, vocabulary, Lengths.parse("10", "-"), Lengths.parse("4", "-"))

    call = feed.make_call(2)
    texts = [one.text for one in pb.BatchedGenerationRequest.FromString(call.body).requests]

    assert (call.is_streamed, call.input_tokens, call.output_tokens) == (False, 30, 12)
    assert [count_words(text) for text in texts] == [10, 10, 10]
    assert len(set(texts)) == 3


def test_sampled_calls_have_seeds_of_their_own_that_every_run_repeats():
    shape = CallShape(Parameters(temperature=0.8))
    vocabulary = Vocabulary.find(ask(count_words))
    feed = SyntheticFeed(shape, vocabulary, Lengths.parse("10", "-"), Lengths.parse("4", "-"))

    seeds = [read_request(feed, index).params.sampling.seed for index in range(20)]

    assert len(set(seeds)) == 20
    assert seeds == [read_request(feed, index).params.sampling.seed for index in range(20)]


def test_the_shortest_prompts_are_exact_too():
    vocabulary = Vocabulary.find(ask(count_words))

    words = vocabulary.make_words(random.Random(1), 1, number=10**12)

    assert len(words) == 1
    assert re.fullmatch(r"\w{1,5}", words[0])
    assert len(vocabulary.words) >= MIN_WORDS
