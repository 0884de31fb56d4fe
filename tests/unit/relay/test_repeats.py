"""What a process writes again and again is withheld, counted, and told when its time is up."""

from __future__ import annotations

from tgis_cli.relay.repeats import MAX_ADMITTED, MAX_REMEMBERED, WINDOW_S, Repeats


def write(repeats: Repeats, text: str, times: int, *, now: float = 0.0) -> list[bool]:
    return [repeats.admit("warning", text, now) for _ in range(times)]


def ended(repeats: Repeats, now: float, window_s: float = WINDOW_S) -> list[tuple[str, int]]:
    return [(seen.text, seen.num_withheld) for seen in repeats.pop_ended(now, window_s)]


def test_the_first_equal_lines_are_admitted_and_the_others_told_at_the_windows_end():
    repeats = Repeats()

    assert write(repeats, "again", 40) == [True] * MAX_ADMITTED + [False] * (40 - MAX_ADMITTED)
    assert ended(repeats, WINDOW_S - 0.1) == []
    assert ended(repeats, WINDOW_S) == [("again", 40 - MAX_ADMITTED)]
    assert not repeats.is_withholding


def test_a_flood_that_goes_on_begins_a_new_window():
    repeats = Repeats()
    write(repeats, "again", 100)
    ended(repeats, WINDOW_S)

    assert write(repeats, "again", MAX_ADMITTED + 1, now=WINDOW_S) == [True] * MAX_ADMITTED + [False]


def test_lines_that_take_turns_are_counted_each():
    repeats = Repeats()
    for _ in range(10):
        write(repeats, "one", 1)
        write(repeats, "two", 1)

    assert ended(repeats, WINDOW_S) == [("one", 10 - MAX_ADMITTED), ("two", 10 - MAX_ADMITTED)]


def test_the_same_text_at_another_level_is_another_line():
    repeats = Repeats()
    write(repeats, "again", 40)

    assert repeats.admit("error", "again", 0.0)


def test_clocks_do_not_make_lines_different_and_other_digits_do():
    repeats = Repeats()
    clocks = [repeats.admit("info", f"W1122 21:30:{i:02}.{i:06} file.cpp:1] slow", 0.0) for i in range(9)]
    numbers = [repeats.admit("info", f"input done correlation_id={i}", 0.0) for i in range(9)]

    assert clocks == [True] * MAX_ADMITTED + [False] * (9 - MAX_ADMITTED)
    assert numbers == [True] * 9


def test_everything_can_be_told_before_its_time():
    repeats = Repeats()
    write(repeats, "again", MAX_ADMITTED + 2)

    assert ended(repeats, 1.0, window_s=0) == [("again", 2)]


def test_only_so_many_lines_are_remembered():
    repeats = Repeats()
    write(repeats, "oldest", MAX_ADMITTED + 1)
    for i in range(MAX_REMEMBERED):
        write(repeats, f"line {i}", 1)

    assert ended(repeats, 1.0) == [("oldest", 1)]
