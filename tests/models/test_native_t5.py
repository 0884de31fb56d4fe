"""T5 with the scheduler and encoded messages generates the same tokens as transformers."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import T5Config

import driving
from tgis_server.engines.api import Launched
from tgis_server.engines.native.families import ALL_FAMILIES, read_spec
from tgis_server.shard.plan_check import PlanCheck
from tgis_server.wire.codec import decode_plan, decode_to_engine, encode_plan, encode_to_engine
from tgis_server.wire.messages import Masks, StepPlan, StepTokens, Submit, TokenDetail, Wanted, pack_ids
from tiny import Driver, prompt_of
from tiny_t5 import START, V1_0, V1_1, Model, make_checkpoint

NUM_NEW = 12
BLOCK_SIZE = 8  # of the runs that tiny.py makes
ENOUGH_BLOCKS = 64
POISON = 7  # a token

T5 = Callable[[str], Model]
Shards = Callable[..., tuple[Driver, list[Any]]]


VERSIONS = {"v1.0": V1_0, "v1.1": V1_1}


@pytest.fixture(scope="session")
def t5(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Model]:
    """Make a tiny T5 of each version once."""
    return cache(lambda version: make_checkpoint(tmp_path_factory.mktemp("t5"), VERSIONS[version]))


class Wired:
    """All ranks as one runner, whose plans arrive encoded."""

    def __init__(self, driver: Driver) -> None:
        self._runner = driver.runner
        self._followers = driver.followers
        self._check = PlanCheck(driver.runner.capacity)

    def launch(self, plan: StepPlan) -> Launched:
        arrived = decode_plan(encode_plan(plan))
        self._check.apply(arrived)
        self._followers(arrived)
        return self._runner.launch(arrived)

    def finish(self, launched: Launched, masks: Masks | None) -> None:
        self._runner.finish(launched, masks)

    def collect(self, launched: Launched) -> StepTokens:
        return self._runner.collect(launched)


@dataclass
class Server:
    """A server with a scheduler and a T5; it remembers its requests."""

    driver: Driver
    num_blocks: int = ENOUGH_BLOCKS
    prefix_cache: bool = True
    depth: int = 1  # steps in flight
    asked: dict[int, Submit] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._ids = count()
        self.scheduled = driving.Driver(
            num_blocks=self.num_blocks,
            block_size=BLOCK_SIZE,
            max_batch_tokens=40,
            prefix_cache=self.prefix_cache,
            depth=self.depth,
            caps=self.driver.runner.caps,
        )
        self.scheduled.runner = Wired(self.driver)
        with torch.inference_mode():
            for layer in self.driver.runner._cache.layers:
                layer.fill_(float("nan"))  # former contents of blocks must not matter

    def ask(self, encoder_ids: list[int], prompt: list[int] = START) -> None:
        request = Submit(
            request_id=next(self._ids),
            prompt_ids=pack_ids(prompt),
            max_new_tokens=NUM_NEW,
            encoder_ids=pack_ids(encoder_ids),
            wanted=Wanted(logprobs=True, generated_tokens=True),
        )
        self.asked[request.request_id] = request
        self.scheduled.apply(*decode_to_engine(encode_to_engine([request], [])))

    def steps(self, number: int) -> None:
        for _ in range(number):
            self.scheduled.step()

    def details(self) -> dict[int, list[TokenDetail]]:
        found: dict[int, list[TokenDetail]] = {request_id: [] for request_id in self.asked}
        for result in self.scheduled.results:
            for column, detail in result.details.items():
                found[result.request_ids[column]].append(detail)
        return found

    @property
    def num_encoded(self) -> int:
        return sum(len(plan.encode) for plan in self.scheduled.plans)


def assert_answers_are_those_of(tiny: Model, server: Server) -> None:
    """Run all requests to their end and compare tokens and log probabilities."""
    server.scheduled.run_until_idle()
    details = server.details()
    for request_id, request in server.asked.items():
        encoder_ids, prompt = request.encoder_ids.tolist(), request.prompt_ids.tolist()
        generated = server.scheduled.tokens[request_id]
        assert generated == tiny.expected(encoder_ids, prompt, NUM_NEW)
        logprobs = tiny.logprobs(encoder_ids, prompt + generated)
        expected = [float(logprobs[len(prompt) - 1 + i, token_id]) for i, token_id in enumerate(generated)]
        assert [detail.logprob for detail in details[request_id]] == pytest.approx(expected, abs=1e-4)
    server.scheduled.assert_blocks_balanced()


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("num_encoded", [1, BLOCK_SIZE, 41], ids=lambda n: f"{n} encoded")
def test_a_single_request_generates_the_same_tokens_as_transformers(
    num_encoded: int, version: str, t5: T5, shards: Shards
) -> None:
    server = Server(shards(t5(version), 1)[0])

    server.ask(prompt_of(num_encoded, seed=num_encoded))

    assert_answers_are_those_of(t5(version), server)


@pytest.mark.parametrize("depth", [1, 2], ids=lambda n: f"depth {n}")
def test_requests_at_different_stages_share_steps(depth: int, t5: T5, shards: Shards) -> None:
    server = Server(shards(t5("v1.1"), 1)[0], depth=depth)

    for seed, (num_encoded, num_prompt) in enumerate([(30, 0), (9, 40), (40, 8), (3, 0)]):
        server.ask(prompt_of(num_encoded, seed), START + prompt_of(num_prompt, seed))
        server.steps(2)

    assert_answers_are_those_of(t5("v1.1"), server)
    rows = [(plan.num_tokens, plan.sample) for plan in server.scheduled.plans if plan.encode]
    alone, together, long_prompt = ([1], [True]), ([1, 1, 1], [True] * 3), ([1, 1], [True, False])
    assert rows == [alone, long_prompt, together, ([1], [False])]  # the last text fills a whole step


def test_a_preempted_request_is_encoded_again(t5: T5, shards: Shards) -> None:
    server = Server(shards(t5("v1.1"), 1)[0], num_blocks=10, prefix_cache=False)

    for seed in range(3):
        server.ask(prompt_of(20, seed), START + prompt_of(6, seed))

    assert_answers_are_those_of(t5("v1.1"), server)
    assert server.scheduled.preemptions > 0
    assert server.num_encoded > 3


def test_equal_texts_are_encoded_once(t5: T5, shards: Shards) -> None:
    """The second request waits for the first one's encoding."""
    server = Server(shards(t5("v1.1"), 1)[0])

    for prompt in (START, START + prompt_of(4, 1)):
        server.ask(prompt_of(30, 5), prompt)

    assert_answers_are_those_of(t5("v1.1"), server)
    assert [len(new.encoder_ids) for plan in server.scheduled.plans for new in plan.new] == [30, 0]
    assert [(len(plan.new), plan.encode) for plan in server.scheduled.plans[:2]] == [(1, [0]), (1, [])]


@pytest.mark.parametrize("version", VERSIONS)
def test_two_shards_generate_the_same_tokens_as_transformers(version: str, t5: T5, shards: Shards) -> None:
    server = Server(shards(t5(version), 2)[0], num_blocks=14, depth=2)

    for seed, num_encoded in enumerate([20, 33, 20, 5]):
        server.ask(prompt_of(num_encoded, num_encoded), START + prompt_of(6, seed))
        server.steps(1)

    assert_answers_are_those_of(t5(version), server)
    assert server.scheduled.preemptions > 0


def test_non_finite_values_affect_only_the_text_that_causes_them(t5: T5, shards: Shards) -> None:
    server = Server(shards(t5("v1.1"), 1)[0])
    with torch.inference_mode():
        server.driver.runner._decoder.encoder._embedding[POISON] = float("nan")
    text = [token for token in prompt_of(30, 2) if token != POISON]

    server.ask(text)
    server.ask([*text, POISON])

    server.scheduled.run_until_idle()
    assert server.scheduled.tokens == {0: t5("v1.1").expected(text, START, NUM_NEW)}
    assert list(server.scheduled.failures) == [1]


@pytest.mark.parametrize("stated", [{}, {"num_layers": 5, "d_kv": 8, "feed_forward_proj": "gated-silu"}])
def test_omitted_keys_have_the_defaults_of_the_class(stated: dict[str, Any], tmp_path: Path) -> None:
    values = {"model_type": "t5", "decoder_start_token_id": 0, **stated}
    (tmp_path / "config.json").write_text(json.dumps(values))
    ours = read_spec(tmp_path, ALL_FAMILIES)

    (tmp_path / "config.json").write_text(T5Config(**values).to_json_string(use_diff=False))

    assert ours == read_spec(tmp_path, ALL_FAMILIES)
