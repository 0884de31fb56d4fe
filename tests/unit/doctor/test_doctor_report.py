"""`tgis doctor` as a whole: the table of checks, the model, the output, and exit codes."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from doctor_subject import GPUS, complaints, judge, make_subject, with_disk
from tgis_cli.commands.doctor import doctor
from tgis_cli.decide.resolve import resolve
from tgis_cli.doctor.checks import CHECKS, Check, check_machine, run_checks
from tgis_cli.doctor.examine import examine
from tgis_cli.doctor.model import check_fit, check_model
from tgis_cli.doctor.report import describe_verdicts
from tgis_cli.doctor.verdict import Subject, Verdict, fail, failed, ok, warn
from tgis_cli.model_files import DEMO_MODEL_DIR
from tgis_server.errors import ModelError, UsageError
from tgis_server.options import options

FLAGS = {option.name: None for option in options()}


def check(*verdicts: Verdict, name: str = "memory") -> Check:
    return Check(name, "Limits", lambda subject: verdicts, is_in_preflight=True)


# -- running checks


def test_names_of_checks_are_unique():
    assert len({check.name for check in CHECKS}) == len(CHECKS)


def test_a_broken_check_is_a_warning_and_the_others_run():
    def explode(subject: Subject) -> list[Verdict]:
        raise ZeroDivisionError("oh")

    verdicts = run_checks(make_subject(), [Check("odd", "Limits", explode), check(ok("Fine."))])

    assert [(verdict.check, str(verdict.level), verdict.sentence) for verdict in verdicts] == [
        ("odd", "warn", "The check odd crashed: ZeroDivisionError: oh."),
        ("memory", "ok", "Fine."),
    ]


def test_a_broken_check_of_the_model_is_a_failure_because_a_start_breaks_too(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("tgis_cli.doctor.model.load_tokenizer", lambda model_dir: 1 / 0)

    verdicts = run_checks(with_model(DEMO_MODEL_DIR), [Check("model", "Model", check_model)])

    assert [(str(verdict.level), verdict.sentence[:25]) for verdict in verdicts] == [
        ("fail", "The check model crashed: ")
    ]


def test_the_same_finding_of_two_checks_is_reported_once():
    verdicts = run_checks(make_subject(), [check(warn("It is so.")), check(warn("It is so."), ok("And more."))])

    assert [verdict.sentence for verdict in verdicts] == ["It is so.", "And more."]


# -- the preflight


def test_the_preflight_raises_the_first_failure_or_returns_warnings(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("tgis_cli.doctor.checks.CHECKS", (check(ok("Fine."), warn("Slow.", "Mend it.")),))
    assert check_machine(make_subject()) == ["Slow. Mend it."]

    monkeypatch.setattr("tgis_cli.doctor.checks.CHECKS", (check(failed(UsageError("No."))), check(warn("Slow."))))
    with pytest.raises(UsageError, match=r"^No\.$"):
        check_machine(make_subject())


def test_a_healthy_machine_is_silent_before_a_start():
    loaded = make_subject({"TGIS_HOST": "127.0.0.1"}, grpc_port="0", port="0")
    subject = replace(loaded, resolved=resolve(loaded.loaded, {}, loaded.machine))

    assert check_machine(subject) == []


def test_the_preflight_warns_of_too_little_shared_memory():
    subject = make_subject(gpus=GPUS, num_shard="2", host=with_disk(64 << 20))

    assert [warning for warning in check_machine(subject) if "/dev/shm" in warning]


# -- the model


def with_model(model_dir: Path, **facts: object) -> Subject:
    subject = make_subject(model_name=str(model_dir), dtype="float32", **facts)
    return replace(subject, resolved=resolve(subject.loaded, {}, subject.machine))


def test_a_complete_model_that_fits_is_ok():
    subject = with_model(DEMO_MODEL_DIR)

    assert judge(check_model, subject) == [
        ("ok", f"{DEMO_MODEL_DIR} is in {DEMO_MODEL_DIR}; the native engine serves it as float32 on cpu.")
    ]
    ((level, sentence),) = judge(check_fit, subject)
    assert (level, sentence[:9]) == ("ok", "It fits: ")


def test_a_model_without_a_tokenizer_is_a_failure(tmp_path: Path):
    model = shutil.copytree(DEMO_MODEL_DIR, tmp_path / "model")
    (model / "tokenizer.json").unlink()

    (failure,) = complaints(check_model, with_model(model))

    assert failure.startswith("No existing fast tokenizer (tokenizer.json) found in ")


def test_a_model_that_cannot_be_served_is_a_failure_with_the_error_of_a_start(tmp_path: Path):
    subject = examine({"model_name": str(tmp_path)}, {"HOME": "/nowhere"})

    (failure,) = complaints(check_model, subject)

    assert failure.startswith(f"{tmp_path} has no config.json; ")
    assert isinstance(subject.problem, ModelError)


def test_weights_larger_than_the_memory_are_a_failure():
    ((level, sentence),) = judge(check_fit, with_model(DEMO_MODEL_DIR, free_bytes=1 << 20))

    assert level == "fail"
    assert "has 12 MiB of weights as float32, but only 1 MiB of memory is free" in sentence


def test_a_model_estimated_not_to_fit_is_a_warning():
    ((level, sentence),) = judge(check_fit, with_model(DEMO_MODEL_DIR, free_bytes=100 << 20))

    assert level == "warn"
    assert sentence.startswith("The server will probably fail to start: ")


def test_the_fit_is_unknown_if_the_driver_does_not_report_memory():
    gpus = (replace(GPUS[0], total_bytes=0, free_bytes=0),)

    assert judge(check_fit, with_model(DEMO_MODEL_DIR, gpus=gpus)) == [
        ("ok", "Whether it fits is unknown: the driver does not report the GPUs' memory.")
    ]


# -- output

VERDICTS = [
    replace(ok("All is well."), check="memory"),
    replace(warn("It is slow.", "Mend it."), check="memory"),
    replace(fail("It is broken, and that takes a lot of words.", "Buy another one."), check="ports"),
]


def test_a_report_has_groups_marks_fixes_and_a_summary():
    assert list(describe_verdicts(VERDICTS, 60, is_colored=False)) == [
        "Limits",
        "  ok    All is well.",
        "  warn  It is slow. Mend it.",
        "",
        "Network",
        "  FAIL  It is broken, and that takes a lot of words.",
        "        Buy another one.",
        "",
        "1 ok, 1 warning, 1 failure",
    ]


def test_at_30_columns_sentences_and_fixes_hang_below_their_start():
    assert list(describe_verdicts(VERDICTS, 30, is_colored=False)) == [
        "Limits",
        "  ok    All is well.",
        "  warn  It is slow. Mend it.",
        "",
        "Network",
        "  FAIL  It is broken, and that",
        "        takes a lot of words.",
        "        Buy another one.",
        "",
        "1 ok, 1 warning, 1 failure",
    ]


def test_in_a_pipe_a_sentence_stays_on_one_line():
    long = replace(warn("word " * 40 + "end.", "Mend it."), check="memory")

    assert list(describe_verdicts([long], None, is_colored=False))[1:3] == [
        f"  warn  {long.sentence}",
        "        Mend it.",
    ]


def test_colours_are_for_terminals():
    assert list(describe_verdicts(VERDICTS[:1], 50, is_colored=True))[1] == "  \x1b[32mok  \x1b[0m  All is well."


def test_json_has_every_verdict_and_a_failure_gives_exit_code_1(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as end:
        doctor(FLAGS | {"run_dir": "/nowhere"}, None, json_=True)

    report = json.loads(capsys.readouterr().out)
    assert end.value.code == 1
    assert report["summary"]["fail"] >= 1
    assert {
        "group": "Storage",
        "check": "run-dir",
        "level": "fail",
        "sentence": "The run directory cannot be created in /nowhere: No such directory. Choose a writable directory "
        "with --run-dir.",
        "fix": "",
        "facts": {"exit_code": 2},
    } in report["verdicts"]


def test_warnings_alone_give_exit_code_0(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "environ", {"HOME": "/", "MAX_SEQ_LENGTH": "7", "GRPC_PORT": "0", "PORT": "0"})

    doctor(FLAGS, None)

    assert "  warn  The variable MAX_SEQ_LENGTH is not an option." in capsys.readouterr().out


def test_an_invalid_flag_is_a_usage_error():
    with pytest.raises(UsageError, match="--port is 'x', but must be an integer"):
        doctor(FLAGS | {"port": "x"}, None)
