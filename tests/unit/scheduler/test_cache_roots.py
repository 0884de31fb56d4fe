"""The roots of the prefix cache: if any part were left out, one request would get the content of another.

The fake engine's tokens show this: they depend on every part except the cache salt, which does not affect content.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from unittest.mock import patch

import pytest

from driving import Driver, adapter, expected_tokens, submit
from tgis_server.scheduler import blocks, sequence
from tgis_server.wire.messages import Submit, pack_ids

BORDER = 16
PROMPT = [0] * 12
WITHOUT: dict[str, dict[str, Any]] = {
    "adapter": {"adapter": None},
    "encoder ids": {"encoder_ids": pack_ids()},
    "virtual rows": {"num_virtual": 0},
    "virtual rows of the encoder": {"num_encoder_virtual": 0},
    "cache salt": {"cache_salt": b""},
}
# Each pair of requests differs in one part only.
PAIRS: dict[str, tuple[Submit, Submit]] = {
    "adapter": (submit(1, PROMPT, adapter=adapter("a")), submit(2, PROMPT, adapter=adapter("b"))),
    "encoder ids": (submit(1, PROMPT, encoder=[1, 2]), submit(2, PROMPT, encoder=[1, 3])),
    "virtual rows": (submit(1, PROMPT), submit(2, PROMPT, num_virtual=2)),
    "virtual rows of the encoder": (
        submit(1, PROMPT, encoder=[0, 0]),
        submit(2, PROMPT, encoder=[0, 0], num_encoder_virtual=1),
    ),
    "cache salt": (submit(1, PROMPT, cache_salt=b"a"), submit(2, PROMPT, cache_salt=b"b")),
    "rope variant": (submit(1, PROMPT), submit(2, PROMPT + [0] * 8)),
}
ENCODER_PARTS = ["adapter", "encoder ids", "virtual rows of the encoder", "cache salt"]


def shares_content(pair: tuple[Submit, Submit], *, encodes: bool = False) -> bool:
    """Whether the second of two requests gets wrong tokens, or anything that the first one computed."""
    driver = Driver(rope_border=BORDER)
    for request in pair:
        driver.apply(request)
        driver.run_until_idle()
    is_shared = [len(plan.encode) for plan in driver.plans].count(1) < 2 if encodes else driver.cached_tokens > 0
    return is_shared or any(driver.tokens[r.request_id] != expected_tokens(r, (), BORDER) for r in pair)


def root_without(part: str, submit: Submit, *, is_rope_long: bool) -> bytes:
    if part == "rope variant":
        return blocks.cache_root(submit, is_rope_long=False)
    return blocks.cache_root(replace(submit, **WITHOUT[part]), is_rope_long=is_rope_long)


@pytest.mark.parametrize("part", PAIRS)
def test_requests_that_differ_in_one_part_share_nothing(part: str) -> None:
    assert not shares_content(PAIRS[part])


@pytest.mark.parametrize("part", PAIRS)
def test_a_root_without_one_part_serves_the_content_of_another_request(part: str) -> None:
    with patch.object(sequence, "cache_root", lambda submit, **rope: root_without(part, submit, **rope)):
        assert shares_content(PAIRS[part])


@pytest.mark.parametrize("part", ENCODER_PARTS)
def test_encodings_that_differ_in_one_part_are_not_shared(part: str) -> None:
    assert not shares_content(with_encoder(PAIRS[part]), encodes=True)


@pytest.mark.parametrize("part", ENCODER_PARTS)
def test_an_encoder_root_without_one_part_serves_the_encoding_of_another_request(part: str) -> None:
    def without_part(submit: Submit) -> bytes:
        return blocks.encoder_root(replace(submit, **WITHOUT[part]))

    with patch.object(sequence, "encoder_root", without_part):
        assert shares_content(with_encoder(PAIRS[part]), encodes=True)


def with_encoder(pair: tuple[Submit, Submit]) -> tuple[Submit, Submit]:
    first, second = (r if r.encoder_ids else replace(r, encoder_ids=pack_ids([5, 6])) for r in pair)
    return first, second
