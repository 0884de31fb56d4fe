"""Lines that a process repeats are withheld, counted, and reported when their window ends."""

from __future__ import annotations

from tgis_cli.relay.repeats import MAX_ADMITTED, MAX_REMEMBERED, WINDOW_S, Repeats


def write(repeats: Repeats, text: str, times: int, *, now: float = 0.0) -> list[bool]:
    return [repeats.admit("warning", text, now) for _ in range(times)]


def ended(repeats: Repeats, now: float, window_s: float = WINDOW_S) -> list[tuple[str, int]]:
    return [(seen.text, seen.num_withheld) for seen in repeats.pop_ended(now, window_s)]


def test_the_first_equal_lines_are_admitted_and_the_others_are_reported_at_the_windows_end():
    repeats = Repeats()

    assert write(repeats, "again", 40) == [True] * MAX_ADMITTED + [False] * (40 - MAX_ADMITTED)
    assert ended(repeats, WINDOW_S - 0.1) == []
    assert ended(repeats, WINDOW_S) == [("again", 40 - MAX_ADMITTED)]
    assert not repeats.is_withholding


def test_a_continuing_flood_starts_a_new_window():
    repeats = Repeats()
    write(repeats, "again", 100)
    ended(repeats, WINDOW_S)

    assert write(repeats, "again", MAX_ADMITTED + 1, now=WINDOW_S) == [True] * MAX_ADMITTED + [False]


def test_alternating_lines_are_counted_separately():
    repeats = Repeats()
    for _ in range(10):
        write(repeats, "one", 1)
        write(repeats, "two", 1)

    assert ended(repeats, WINDOW_S) == [("one", 10 - MAX_ADMITTED), ("two", 10 - MAX_ADMITTED)]


def test_the_same_text_at_another_level_is_a_different_line():
    repeats = Repeats()
    write(repeats, "again", 40)

    assert repeats.admit("error", "again", 0.0)


def test_lines_that_differ_only_in_clocks_are_equal_but_those_that_differ_in_other_digits_are_not():
    repeats = Repeats()
    clocks = [repeats.admit("info", f"W1122 21:30:{i:02}.{i:06} file.cpp:1] slow", 0.0) for i in range(9)]
    numbers = [repeats.admit("info", f"input done correlation_id={i}", 0.0) for i in range(9)]

    assert clocks == [True] * MAX_ADMITTED + [False] * (9 - MAX_ADMITTED)
    assert numbers == [True] * 9


def test_withheld_lines_can_be_reported_before_the_window_ends():
    repeats = Repeats()
    write(repeats, "again", MAX_ADMITTED + 2)

    assert ended(repeats, 1.0, window_s=0) == [("again", 2)]


def test_the_number_of_remembered_lines_is_limited():
    repeats = Repeats()
    write(repeats, "oldest", MAX_ADMITTED + 1)
    for i in range(MAX_REMEMBERED):
        write(repeats, f"line {i}", 1)

    assert ended(repeats, 1.0) == [("oldest", 1)]
