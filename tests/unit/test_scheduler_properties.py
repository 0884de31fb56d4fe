"""What must hold for every load, pool size and budget, at one and two steps in flight."""

from __future__ import annotations

from unittest.mock import patch

from hypothesis import given, settings
from hypothesis import strategies as st

from driving import VOCAB_SIZE, Driver, expected_tokens, submit
from tgis_server.scheduler import waiting
from tgis_server.wire.messages import Cancel, Wanted

prompts = st.one_of(
    st.lists(st.integers(0, VOCAB_SIZE - 1), min_size=1, max_size=20),
    st.integers(1, 20).map(lambda length: list(range(length))),  # common beginnings, for the prefix cache
)


@st.composite
def loads(draw):
    """A server and a timetable: before which step which request arrives, and perhaps when it is cancelled."""
    block_size = draw(st.integers(1, 5))
    driver_args = {
        "block_size": block_size,
        "num_blocks": draw(st.integers(1, 24)),
        "max_batch_size": draw(st.integers(1, 6)),
        "max_batch_tokens": draw(st.integers(1, 16)),
        "eos_ids": frozenset(draw(st.lists(st.integers(0, VOCAB_SIZE - 1), max_size=3))),
        "prefix_cache": draw(st.booleans()),
        "rope_border": draw(st.one_of(st.none(), st.integers(1, 25))),
    }
    requests = [
        (
            draw(st.integers(0, 15)),
            submit(
                i,
                draw(prompts),
                draw(st.integers(1, 12)),
                wanted=Wanted(ranks=True, input_tokens=draw(st.booleans())),
            ),
        )
        for i in range(draw(st.integers(1, 10)))
    ]
    cancels = draw(st.dictionaries(st.integers(0, 9), st.integers(0, 30), max_size=3))
    return driver_args, requests, cancels


def drive(driver, requests, cancels):
    """Run the timetable to the end, checking after every step what must hold at any time."""
    for step in range(31):
        driver.apply(*[request for at, request in requests if at == step])
        driver.apply(*[Cancel(request_id) for request_id, at in cancels.items() if at == step])
        driver.step()
        driver.assert_memory_is_sound()
        if driver.plans:
            assert driver.plans[-1].total_tokens <= driver.max_batch_tokens
    driver.run_until_idle()


@settings(max_examples=200, deadline=None)
@given(loads(), st.sampled_from([1, 2]))
def test_every_accepted_request_finishes_with_its_own_tokens_and_all_blocks_return(load, depth):
    driver_args, requests, cancels = load
    driver = Driver(depth=depth, **driver_args)

    drive(driver, requests, cancels)

    for _, request in requests:
        expected = expected_tokens(request, driver.eos_ids, driver.rope_border)
        if request.request_id in cancels:
            assert driver.tokens[request.request_id] == expected[: len(driver.tokens[request.request_id])]
        elif request.request_id not in driver.failures:
            assert driver.tokens[request.request_id] == expected
            assert request.request_id in driver.reasons
            described = list(request.prompt_ids[1:]) if request.wanted.input_tokens else []
            assert driver.described[request.request_id] == described
    driver.assert_blocks_balanced()


@settings(max_examples=100, deadline=None)
@given(loads(), st.sampled_from([1, 2]))
def test_a_cached_prefix_changes_no_output(load, depth):
    driver_args, requests, _ = load
    outputs = []
    for prefix_cache in (False, True):
        driver = Driver(depth=depth, **driver_args | {"prefix_cache": prefix_cache})
        drive(driver, requests, {})
        outputs.append((dict(driver.tokens), driver.reasons, set(driver.failures)))

    assert outputs[0] == outputs[1]


@settings(max_examples=100, deadline=None)
@given(loads(), st.sampled_from([1, 2]))
def test_nobody_is_overtaken_more_often_than_the_limit_and_nobody_starves(load, depth):
    driver_args, requests, _ = load
    driver = Driver(depth=depth, **driver_args)

    with patch.object(waiting, "MAX_OVERTAKEN", 2):
        drive(driver, requests, {})

    arrivals = [request.request_id for _, request in sorted(requests, key=lambda pair: pair[0])]
    started = [request_id for result in driver.results for request_id, _ in result.started]
    assert set(started) == set(arrivals) - set(driver.failures)
    for place, request_id in enumerate(started):
        later = set(arrivals[arrivals.index(request_id) :])
        assert len(later.intersection(started[:place])) <= 2
