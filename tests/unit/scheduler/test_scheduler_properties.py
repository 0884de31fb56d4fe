"""What must hold for every load, engine, pool size and budget, with one and two steps in flight.

The loads are random; each is made from a seed, which a failure reports. ``TGIS_SCHEDULER_RUNS=18000`` runs that many
of them; by default there are a few, which are always the same.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from random import Random
from typing import Any
from unittest.mock import patch

from driving import VOCAB_SIZE, Driver, adapter, every, expected_tokens, submit
from tgis_server.engines.api import RunnerCaps
from tgis_server.scheduler import waiting
from tgis_server.wire.messages import Cancel, FinishReason, Submit, Wanted

RUNS = int(os.environ.get("TGIS_SCHEDULER_RUNS", "400"))
NUM_STEPS = 31  # the length of a timetable
MOMENTS = [f"{half}{step}" for half in ("step", "finish") for step in range(20)]
ENCODERS = [(), (), range(1), range(6), range(13), range(20, 24)]  # few, so that requests share them
ADAPTERS = [None, None, *map(adapter, ("a", "b", "c", "broken"))]
GRAMMARS = [None, None, *map(every, (1, 3, 20))]
SALTS = [b"", b"", b"salt"]


@dataclass
class Load:
    """A server, the events that it has to handle, and the requests with the steps at which they arrive."""

    server: dict[str, Any]
    depth: int
    timetable: list[tuple[int, Submit]]
    cancels: dict[int, int]  # request id -> step
    deadlines: dict[int, float]  # request id -> steps
    out_of_memory: list[str]

    def driver(self, **others: Any) -> Driver:
        return Driver(depth=self.depth, **self.server | others)

    @property
    def requests(self) -> list[Submit]:
        return [request for _, request in self.timetable]


def random_load(random: Random) -> Load:
    requests = [random_request(random, i) for i in range(random.randint(1, 10))]
    return Load(
        random_server(random),
        random.choice([1, 2]),
        [(random.randint(0, 15), request) for request in requests],
        {random.randint(0, 9): random.randrange(NUM_STEPS) for _ in range(random.choice([0, 0, 1, 3]))},
        {random.randint(0, 9): random.uniform(0, NUM_STEPS) for _ in range(random.choice([0, 0, 1, 3]))},
        random.sample(MOMENTS, random.choice([0, 0, 1, 3])),
    )


def random_server(random: Random) -> dict[str, Any]:
    """Arguments of a ``Driver`` for any engine and size."""
    caps = RunnerCaps(
        memory=random.choice(["paged", "paged", "paged", "rows"]),
        chunked_prefill=random.random() < 0.7,
        mixed_steps=random.random() < 0.7,
        prefix_cache=random.random() < 0.8,
    )
    return {
        "caps": caps,
        "block_size": random.randint(1, 5),
        "num_blocks": random.randint(1, 40),
        "max_rows": random.randint(1, 6),
        "max_padded_tokens": random.randint(20, 200),
        "max_batch_size": random.randint(1, 6),
        "max_batch_tokens": random.randint(1, 16),
        "end_ids": frozenset(random.sample(range(VOCAB_SIZE), random.randint(0, 3))),
        "prefix_cache": random.random() < 0.7,
        "rope_border": random.choice([None, None, random.randint(1, 25)]),
        "max_adapters": random.randint(1, 2),
        "staging_steps": random.randint(0, 3),
    }


def random_request(random: Random, request_id: int) -> Submit:
    length = random.randint(1, 20)
    prompt = random.choice([range(length), [random.randrange(VOCAB_SIZE) for _ in range(length)]])
    fields: dict[str, Any] = {"wanted": Wanted(ranks=True, input_tokens=random.random() < 0.3)}
    if random.random() < 0.6:
        encoder = random.choice(ENCODERS)
        fields |= {
            "encoder": encoder,
            "num_encoder_virtual": random.randint(0, min(1, len(encoder))),
            "num_virtual": random.randint(0, min(2, length)),
            "adapter": random.choice(ADAPTERS),
            "grammar": random.choice(GRAMMARS),
            "cache_salt": random.choice(SALTS),
        }
    return submit(request_id, prompt, random.randint(1, 12), **fields)


def for_random_loads(share: float) -> Callable[[Callable[[Load], None]], Callable[[], None]]:
    """Run a test with the first ``share`` of all loads."""

    def decorate(test: Callable[[Load], None]) -> Callable[[], None]:
        def run() -> None:
            for seed in range(round(RUNS * share)):
                try:
                    test(random_load(Random(seed)))
                except BaseException as error:
                    error.add_note(f"load of seed {seed}")
                    raise

        run.__name__ = test.__name__
        return run

    return decorate


def drive(driver: Driver, load: Load, *, cancels: dict[int, int] | None = None) -> None:
    """Run the timetable to the end, checking the invariants after every step."""
    for step in range(NUM_STEPS):
        driver.apply(*[request for at, request in load.timetable if at == step])
        driver.apply(*[Cancel(request_id) for request_id, at in (cancels or {}).items() if at == step])
        if driver.step():
            driver.assert_plan_is_allowed()
        driver.assert_memory_is_sound()
    driver.run_until_idle()


@for_random_loads(2 / 3)
def test_every_accepted_request_finishes_with_its_own_tokens_and_everything_is_released(load: Load) -> None:
    driver = load.driver(out_of_memory=load.out_of_memory, step_seconds=lambda _: 1.0)
    load.timetable = [(at, replace(r, deadline=load.deadlines.get(r.request_id))) for at, r in load.timetable]

    drive(driver, load, cancels=load.cancels)

    for request in load.requests:
        request_id = request.request_id
        tokens, failure = driver.tokens[request_id], driver.failures.get(request_id, "")
        expected = expected_tokens(request, driver.end_ids, driver.rope_border)
        is_late = driver.reasons.get(request_id) is FinishReason.TIME_LIMIT
        if failure or is_late or request_id in load.cancels:
            assert tokens == expected[: len(tokens)]
            assert "memory" not in failure or load.out_of_memory
            assert not is_late or request.deadline is not None
        else:
            assert tokens == expected
            assert request_id in driver.reasons
            assert not (request.adapter and request.adapter.id == "broken")
            assert driver.described[request_id] == (list(request.prompt_ids[1:]) if request.wanted.input_tokens else [])
    driver.assert_blocks_balanced()


@for_random_loads(1 / 6)
def test_a_cached_prefix_changes_no_output(load: Load) -> None:
    outputs = []
    for prefix_cache in (False, True):
        driver = load.driver(prefix_cache=prefix_cache)
        drive(driver, load)
        outputs.append((dict(driver.tokens), driver.reasons, set(driver.failures)))

    assert outputs[0] == outputs[1]


@for_random_loads(1 / 6)
def test_no_request_starves_or_is_overtaken_more_often_than_the_limit(load: Load) -> None:
    driver = load.driver(staging_steps=0)  # otherwise some requests would wait outside the queue

    with patch.object(waiting, "MAX_OVERTAKEN", 2):
        drive(driver, load)

    arrivals = [request.request_id for _, request in sorted(load.timetable, key=lambda pair: pair[0])]
    started = [request_id for result in driver.results for request_id, _ in result.started]
    assert set(started) == set(arrivals) - set(driver.failures)
    for position, request_id in enumerate(started):
        later = set(arrivals[arrivals.index(request_id) :])
        assert len(later.intersection(started[:position])) <= 2
