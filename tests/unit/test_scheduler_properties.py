"""What must hold for every load, engine, pool size and budget, at one and two steps in flight.

``TGIS_SCHEDULER_RUNS=18000`` looks at so many loads in each test; by default they are few, to be quick.
"""

from __future__ import annotations

import os
from unittest.mock import patch

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from driving import VOCAB_SIZE, Driver, adapter, every, expected_tokens, submit
from tgis_server.engines.api import RunnerCaps
from tgis_server.scheduler import waiting
from tgis_server.wire.messages import Cancel, Wanted

RUNS = int(os.environ.get("TGIS_SCHEDULER_RUNS", "0"))
NUM_STEPS = 31  # of a timetable
MOMENTS = [f"{half}{step}" for half in ("step", "finish") for step in range(20)]

ids = st.integers(0, VOCAB_SIZE - 1)
prompts = st.one_of(
    st.lists(ids, min_size=1, max_size=20),
    st.integers(1, 20).map(lambda length: list(range(length))),  # common beginnings, for the prefix cache
)
encoders = st.sampled_from([(), (), range(1), range(6), range(13), range(20, 24)])  # few, so that they are shared
adapters = st.sampled_from([None, None, *map(adapter, ("a", "b", "c", "broken"))])
grammars = st.sampled_from([None, None, *map(every, (1, 3, 20))])
salts = st.sampled_from([b"", b"", b"salt"])


def runs(few: int) -> settings:
    return settings(max_examples=RUNS or few, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@st.composite
def servers(draw):
    """Arguments of a ``Driver``: any engine, any size."""
    has_rows = draw(st.booleans()) and draw(st.booleans())
    caps = RunnerCaps(
        memory="rows" if has_rows else "paged",
        chunked_prefill=draw(st.booleans()) or draw(st.booleans()),
        mixed_steps=draw(st.booleans()) or draw(st.booleans()),
        prefix_cache=draw(st.booleans()) or draw(st.booleans()),
    )
    return {
        "caps": caps,
        "block_size": draw(st.integers(1, 5)),
        "num_blocks": draw(st.integers(1, 32)),
        "max_rows": draw(st.integers(1, 6)),
        "max_padded_tokens": draw(st.integers(20, 200)),
        "max_batch_size": draw(st.integers(1, 6)),
        "max_batch_tokens": draw(st.integers(1, 16)),
        "eos_ids": frozenset(draw(st.lists(ids, max_size=3))),
        "prefix_cache": draw(st.booleans()),
        "rope_border": draw(st.one_of(st.none(), st.integers(1, 25))),
        "max_adapters": draw(st.integers(1, 2)),
        "staging_steps": draw(st.integers(0, 3)),
    }


@st.composite
def requests(draw, request_id):
    prompt = draw(prompts)
    fields = {}
    if draw(st.booleans()):
        encoder = draw(encoders)
        fields = {
            "encoder": encoder,
            "num_encoder_virtual": draw(st.integers(0, 1)) if encoder else 0,
            "num_virtual": draw(st.integers(0, min(2, len(prompt)))),
            "adapter": draw(adapters),
            "grammar": draw(grammars),
            "cache_salt": draw(salts),
        }
    wanted = Wanted(ranks=True, input_tokens=draw(st.booleans()))
    return submit(request_id, prompt, draw(st.integers(1, 12)), wanted=wanted, **fields)


@st.composite
def loads(draw):
    """A server and a timetable: before which step which request arrives."""
    timetable = [(draw(st.integers(0, 15)), draw(requests(i))) for i in range(draw(st.integers(1, 10)))]
    return draw(servers()), timetable


accidents = st.fixed_dictionaries(
    {
        "cancels": st.dictionaries(st.integers(0, 9), st.integers(0, NUM_STEPS - 1), max_size=3),
        "out_of_memory": st.sets(
            st.sampled_from([f"{m}{i}" for m in ("step", "finish") for i in range(20)]), max_size=2
        ),
    }
)
depths = st.sampled_from([1, 2])


def drive(driver, timetable, cancels=()):
    """Run the timetable to the end, checking after every step what must hold at any time."""
    cancels = dict(cancels)
    num_without_decodes = 0
    for step in range(NUM_STEPS):
        driver.apply(*[request for at, request in timetable if at == step])
        driver.apply(*[Cancel(request_id) for request_id, at in cancels.items() if at == step])
        could_decode = driver.could_decode()
        has_step = driver.step()
        driver.assert_memory_is_sound()
        if has_step:
            driver.assert_plan_is_allowed()
            num_without_decodes = num_without_decodes + 1 if could_decode and not driver.has_decodes() else 0
            assert num_without_decodes <= 1, "decode rows wait for more than one step of somebody's prefill"
    driver.run_until_idle()


@runs(200)
@given(loads(), accidents, depths)
def test_every_accepted_request_finishes_with_its_own_tokens_and_nothing_stays_held(load, accident, depth):
    driver_args, timetable = load
    cancels, out_of_memory = accident["cancels"], accident["out_of_memory"]
    driver = Driver(depth=depth, out_of_memory=out_of_memory, **driver_args)

    drive(driver, timetable, cancels)

    for _, request in timetable:
        request_id = request.request_id
        tokens, failure = driver.tokens[request_id], driver.failures.get(request_id, "")
        expected = expected_tokens(request, driver.eos_ids, driver.rope_border)
        if failure or request_id in cancels:
            assert tokens == expected[: len(tokens)]
            assert "memory" not in failure or out_of_memory
        else:
            assert tokens == expected
            assert request_id in driver.reasons
            assert not (request.adapter and request.adapter.id == "broken")
            assert driver.described[request_id] == (list(request.prompt_ids[1:]) if request.wanted.input_tokens else [])
    driver.assert_blocks_balanced()


@runs(60)
@given(loads(), depths)
def test_a_cached_prefix_changes_no_output(load, depth):
    driver_args, timetable = load
    outputs = []
    for prefix_cache in (False, True):
        driver = Driver(depth=depth, **driver_args | {"prefix_cache": prefix_cache})
        drive(driver, timetable)
        outputs.append((dict(driver.tokens), driver.reasons, set(driver.failures)))

    assert outputs[0] == outputs[1]


@runs(60)
@given(loads(), depths)
def test_nobody_is_overtaken_more_often_than_the_limit_and_nobody_starves(load, depth):
    driver_args, timetable = load
    driver = Driver(depth=depth, **driver_args | {"staging_steps": 0})  # else one waits beside the queue

    with patch.object(waiting, "MAX_OVERTAKEN", 2):
        drive(driver, timetable)

    arrivals = [request.request_id for _, request in sorted(timetable, key=lambda pair: pair[0])]
    started = [request_id for result in driver.results for request_id, _ in result.started]
    assert set(started) == set(arrivals) - set(driver.failures)
    for place, request_id in enumerate(started):
        later = set(arrivals[arrivals.index(request_id) :])
        assert len(later.intersection(started[:place])) <= 2
