"""Which process the kernel killed for lack of memory, judged by its kill count and the sizes of processes."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from tgis_cli.causes.oom import OomEvidence, OomLikelihood, OomWatch

GIB = 1 << 30
LIMIT = 4 * GIB
SIZES = {"frontend": GIB // 8, "shard-0": 3 * GIB}


class Group:
    """A control group whose kill count, clock and process sizes are set by the test."""

    def __init__(self, count: int | None, sizes: Mapping[str, int] = SIZES) -> None:
        self.count = count
        self.now = 100.0
        self._sizes = dict(enumerate(sizes.values(), start=1))
        self._pids = dict(zip(sizes, self._sizes, strict=True))
        self.watch = OomWatch(lambda: self.count, lambda pid: self._sizes.get(pid, 0), lambda: self.now)
        self.watch.sample(self._pids)

    def sample(self, at: float, *, kills: int = 0) -> None:
        self.now = at
        self.count = None if self.count is None else self.count + kills
        self.watch.sample(self._pids)

    def judge(self, name: str, ended_at: float, limit_bytes: int | None = LIMIT) -> OomLikelihood:
        seen = self.watch.evidence()
        return OomEvidence(seen.is_counted, seen.rises, seen.child_bytes, limit_bytes).judge(name, ended_at)


def test_the_largest_child_that_ends_as_the_count_rises_was_killed_for_memory():
    group = Group(count=7)
    group.sample(101.0)
    group.sample(101.4, kills=1)

    assert group.judge("shard-0", 101.4) is OomLikelihood.YES


def test_a_child_that_takes_seconds_to_end_was_killed_for_memory():
    group = Group(count=0)
    group.sample(101.0, kills=1)
    group.sample(102.0)

    assert group.judge("shard-0", 103.5) is OomLikelihood.YES


def test_an_earlier_kill_of_another_process_does_not_count():
    group = Group(count=0)
    group.sample(101.0, kills=1)
    group.sample(110.0)

    assert group.judge("shard-0", 110.0) is OomLikelihood.NO


def test_kills_before_the_start_do_not_count():
    assert Group(count=3).judge("shard-0", 100.5) is OomLikelihood.NO


@pytest.mark.parametrize(
    ("sizes", "name"), [(SIZES, "frontend"), ({"frontend": GIB // 8, "shard-0": GIB // 4}, "shard-0")]
)
def test_a_child_that_the_kernel_would_not_choose_was_perhaps_not_the_victim(sizes: Mapping[str, int], name: str):
    group = Group(count=0, sizes=sizes)
    group.sample(101.0, kills=1)

    assert group.judge(name, 101.0) is OomLikelihood.PERHAPS


def test_without_a_limit_the_machine_was_short_of_memory():
    group = Group(count=0)
    group.sample(101.0, kills=1)

    assert group.judge("shard-0", 101.0, limit_bytes=None) is OomLikelihood.YES


def test_without_a_kill_count_nothing_is_known():
    assert Group(count=None).judge("shard-0", 101.0) is OomLikelihood.UNKNOWN
