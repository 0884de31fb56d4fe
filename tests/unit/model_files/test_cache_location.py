"""The cache directory is where huggingface_hub looks, in any environment."""

from __future__ import annotations

import json
import os
import pwd
import subprocess
from collections.abc import Mapping
from itertools import product
from pathlib import Path

import pytest

from tgis_cli.model_files import find_cache_dir, get_cache_dir
from tgis_server.errors import UsageError
from tgis_server.host.interpreter import make_command

# The library reads its environment when it is imported.
PROGRAM = """
import importlib, json, os, pwd, sys
import huggingface_hub.constants as library
found = []
for environ, has_user in json.load(sys.stdin):
    os.environ.clear()
    os.environ.update(environ)
    pwd.getpwuid = {os.getuid(): known}.__getitem__ if has_user else {}.__getitem__
    found.append(importlib.reload(library).HF_HUB_CACHE)
print(json.dumps(found))
""".replace("import huggingface_hub", "known = pwd.getpwuid(os.getuid())\nimport huggingface_hub")

VALUES = (
    "",
    "/a",
    "a/b",
    "~",
    "~/c",
    "~nobody-at-all/c",
    "~root/c",
    "$HOME/v",
    "${WORK}/v",
    "$UNKNOWN/v",
    "a$",
    "${",
    " /a ",
)
HOMES: tuple[dict[str, str], ...] = ({"HOME": "/home/u"}, {"HOME": "/home/u/"}, {"HOME": ""}, {"HOME": "/$WORK"}, {})
NAMES = ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME")
ENVIRONMENTS: list[dict[str, str]] = [
    {},
    {"HF_HUB_CACHE": "/a", "HF_HOME": "/h"},
    {"HF_HUB_CACHE": "", "HF_HOME": "/h", "XDG_CACHE_HOME": "/x"},
    {"HF_HUB_CACHE": "", "HUGGINGFACE_HUB_CACHE": "/a"},
    {"HF_HUB_CACHE": "/a", "HUGGINGFACE_HUB_CACHE": ""},
    {"HUGGINGFACE_HUB_CACHE": "~/c", "HF_HOME": "/h"},
    {"HF_HOME": "~/h", "XDG_CACHE_HOME": "/x"},
    *({name: value} for name, value in product(NAMES, VALUES)),
]


def ask_library(cases: list[tuple[dict[str, str], bool]], directory: Path) -> list[str]:
    done = subprocess.run(
        make_command("-c", PROGRAM), input=json.dumps(cases), cwd=directory, capture_output=True, text=True, check=True
    )
    return list(json.loads(done.stdout))


def find_here(environ: Mapping[str, str], *, has_user: bool) -> str:
    known = {os.getuid(): pwd.getpwuid(os.getuid())} if has_user else {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pwd, "getpwuid", known.__getitem__)
        return str(find_cache_dir(environ)[0])


def test_the_cache_is_where_the_hub_library_looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    cases = [
        (home | {"WORK": "/w"} | environ, has_user)
        for home, environ, has_user in product(HOMES, ENVIRONMENTS, (True, False))
    ]

    expected = ask_library(cases, tmp_path)

    found = [find_here(environ, has_user=has_user) for environ, has_user in cases]
    differing = [
        (case, theirs, ours)
        for case, theirs, ours in zip(cases, expected, found, strict=True)
        if os.path.abspath(theirs) != os.path.abspath(ours)
    ]
    assert differing == []


def test_the_variable_of_the_original_images_takes_precedence_over_hf_home():
    assert find_cache_dir({"TRANSFORMERS_CACHE": "/b", "HF_HOME": "/h"}) == (Path("/b"), "TRANSFORMERS_CACHE")
    assert find_cache_dir({"TRANSFORMERS_CACHE": "", "HF_HOME": "/h"}) == (Path("/h/hub"), "HF_HOME")
    assert find_cache_dir({"TRANSFORMERS_CACHE": "~/b", "HOME": "/u"}) == (Path("/u/b"), "TRANSFORMERS_CACHE")


def test_variables_that_name_different_caches_are_an_error():
    with pytest.raises(
        UsageError, match="TRANSFORMERS_CACHE and HF_HUB_CACHE env vars can't be set to different values"
    ):
        find_cache_dir({"HF_HUB_CACHE": "/a", "TRANSFORMERS_CACHE": "/b"})


def test_variables_may_spell_the_same_cache_differently():
    environ = {"HOME": "/u", "HF_HUB_CACHE": "~/a", "TRANSFORMERS_CACHE": "$HOME/a"}

    assert find_cache_dir(environ) == (Path("/u/a"), "HF_HUB_CACHE")


def test_a_user_without_a_home_must_name_a_cache(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pwd, "getpwuid", {}.__getitem__)

    with pytest.raises(UsageError, match=r"HOME is not set, and user .* has no home directory: name the cache"):
        get_cache_dir({})
