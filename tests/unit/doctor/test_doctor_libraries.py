"""The doctor's checks of Python and packages."""

from __future__ import annotations

import sys
from importlib import metadata

import pytest

from doctor_subject import complaints, judge, make_subject, with_versions
from tgis_cli.doctor.libraries import check_libraries


@pytest.fixture(autouse=True)
def _requirements(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["grpcio>=1.76", "protobuf<8,>=6.31.1", "torch>=2.11", 'pytest>=8; extra == "dev"']
    monkeypatch.setattr(metadata, "requires", lambda name: texts)


def test_sufficient_versions_are_reported_in_one_line():
    host = with_versions(grpcio="1.76.0", protobuf="odd", torch="2.11.0a0+vendor")

    ((level, sentence),) = judge(check_libraries, make_subject(host=host))

    assert level == "ok"
    assert sentence.endswith(", torch 2.11.0a0+vendor, grpcio 1.76.0.")


def test_packages_that_are_too_old_too_new_or_missing_are_failures_with_the_command_that_fixes_them():
    host = with_versions(protobuf="8.0", torch="2.9.1")

    assert complaints(check_libraries, make_subject(host=host)) == [
        "The package grpcio is not installed. pip install 'grpcio>=1.76'.",
        "protobuf 8.0 is installed, but TGIS needs <8,>=6.31.1. pip install 'protobuf<8,>=6.31.1'.",
        "torch 2.9.1 is installed, but TGIS needs >=2.11. pip install 'torch>=2.11'.",
    ]


def test_an_old_python_is_a_failure(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "version_info", (3, 10, 4))
    host = with_versions(grpcio="2", protobuf="7", torch="3")

    (failure,) = complaints(check_libraries, make_subject(host=host))

    assert failure.endswith("but 3.11 or newer is needed. Install a newer one.")
