"""The termination log: first the sentence, then whole lines, never more than Kubernetes reads."""

from __future__ import annotations

from pathlib import Path

from tgis_cli.launch.termination_log import MAX_BYTES, compose, write_termination_log


def test_the_sentence_comes_first_and_replaces_the_old_text(tmp_path: Path):
    log = tmp_path / "termination-log"
    log.write_text("a longer text of an earlier end\n" * 3)

    write_termination_log(log, "The model is gone.", "Traceback:\n  here\n")

    assert log.read_text() == "The model is gone.\nTraceback:\n  here\n"


def test_the_last_whole_lines_of_the_details_are_kept():
    details = "".join(f"line {i} é\n" for i in range(1000))

    lines = compose("It failed.", details).decode().splitlines()

    assert len(compose("It failed.", details)) in range(MAX_BYTES - len("line 999 é\n") - 1, MAX_BYTES + 1)
    assert lines[0] == "It failed."
    assert lines[1:] == [f"line {i} é" for i in range(1001 - len(lines), 1000)]


def test_a_sentence_that_is_too_long_is_cut_between_characters():
    text = compose("x" + "€" * 2000, "")

    assert text.decode() == "x" + "€" * ((MAX_BYTES - 1) // 3)


def test_a_line_that_does_not_fit_leaves_the_sentence_alone():
    assert compose("It failed.", "y" * MAX_BYTES) == b"It failed.\n"


def test_a_termination_log_that_cannot_be_written_is_ignored(tmp_path: Path):
    write_termination_log(tmp_path / "missing" / "log", "It failed.")
    write_termination_log(Path("/dev/no-such-termination-log"), "It failed.")

    assert not Path("/dev/no-such-termination-log").exists()
