"""T5 through the scheduler and the messages between processes generates what transformers generates."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import pytest

import driving
from tgis_server.engines.api import Launched
from tgis_server.engines.native.families import read_spec
from tgis_server.errors import ModelError
from tgis_server.wire.codec import decode_plan, decode_to_engine, encode_plan, encode_to_engine
from tgis_server.wire.messages import Masks, StepPlan, StepTokens, Submit, TokenDetail, Wanted, pack_ids
from tiny import Driver, prompt_of
from tiny_t5 import START, V1_0, V1_1, Model, make_checkpoint

NUM_NEW = 14
BLOCK_SIZE = 8  # of the runs that tiny.py makes
ENOUGH_BLOCKS = 64

Shards = Callable[..., tuple[Driver, list[Any]]]


@pytest.fixture(scope="module", params=[V1_0, V1_1], ids=["v1.0", "v1.1"])
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    return make_checkpoint(tmp_path_factory.mktemp("t5"), request.param)


class Wired:
    """All ranks behind the bytes that plans travel in, as one runner."""

    def __init__(self, driver: Driver) -> None:
        self._runner = driver.runner
        self._followers = driver.followers

    def launch(self, plan: StepPlan) -> Launched:
        arrived = decode_plan(encode_plan(plan))
        self._followers(arrived)
        return self._runner.launch(arrived)

    def finish(self, launched: Launched, masks: Masks | None) -> None:
        self._runner.finish(launched, masks)

    def collect(self, launched: Launched) -> StepTokens:
        return self._runner.collect(launched)


@dataclass
class Server:
    """A scheduler and a T5; remembers what it was asked."""

    driver: Driver
    num_blocks: int = ENOUGH_BLOCKS
    prefix_cache: bool = True
    asked: dict[int, Submit] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._ids = count()
        self.scheduled = driving.Driver(
            num_blocks=self.num_blocks,
            block_size=BLOCK_SIZE,
            max_batch_tokens=80,
            prefix_cache=self.prefix_cache,
            caps=self.driver.runner.caps,
        )
        self.scheduled.runner = Wired(self.driver)

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
    """All requests, to their end."""
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


@pytest.mark.parametrize("num_encoded", [1, 5, 8, 41], ids=lambda n: f"{n} encoded")
def test_a_request_alone(num_encoded: int, tiny: Model, shards: Shards) -> None:
    server = Server(shards(tiny, 1)[0])

    server.ask(prompt_of(num_encoded, seed=num_encoded))

    assert_answers_are_those_of(tiny, server)


def test_requests_at_different_stages_share_steps(tiny: Model, shards: Shards) -> None:
    server = Server(shards(tiny, 1)[0])

    for seed, (num_encoded, prompt) in enumerate([(30, START), (9, START + prompt_of(11, 1)), (40, START), (3, START)]):
        server.ask(prompt_of(num_encoded, seed), prompt)
        server.steps(3)

    assert_answers_are_those_of(tiny, server)
    assert [plan.num_rows for plan in server.scheduled.plans if plan.encode] == [1, 2, 3, 4]


def test_a_preempted_request_is_encoded_again(tiny: Model, shards: Shards) -> None:
    server = Server(shards(tiny, 1)[0], num_blocks=10, prefix_cache=False)

    for seed in range(3):
        server.ask(prompt_of(20, seed), START + prompt_of(6, seed))

    assert_answers_are_those_of(tiny, server)
    assert server.scheduled.preemptions > 0
    assert server.num_encoded > 3


def test_equal_texts_are_encoded_once(tiny: Model, shards: Shards) -> None:
    server = Server(shards(tiny, 1)[0])

    for prompt in (START, START + prompt_of(4, 1)):
        server.ask(prompt_of(30, 5), prompt)

    assert_answers_are_those_of(tiny, server)
    assert server.num_encoded == 1
    assert [new.encoder_ids.tolist() for plan in server.scheduled.plans for new in plan.new] == [prompt_of(30, 5), []]


def test_two_shards(tiny: Model, shards: Shards) -> None:
    server = Server(shards(tiny, 2)[0], num_blocks=14)

    for seed, num_encoded in enumerate([20, 33, 20, 5]):
        server.ask(prompt_of(num_encoded, num_encoded), START + prompt_of(6, seed))
        server.steps(1)

    assert_answers_are_those_of(tiny, server)
    assert server.scheduled.preemptions > 0


def test_commands_and_doors_refuse_it(tiny: Model) -> None:
    with pytest.raises(ModelError, match="architecture T5ForConditionalGeneration has no native engine"):
        read_spec(tiny.directory)
