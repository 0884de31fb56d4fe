"""The compiled operations under the compiler's sanitizers, which see what right results hide."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tgis_server.engines.native.ops.cpu import build
from tgis_server.engines.native.ops.cpu.instruction_sets import AUTO, choose_sets
from tgis_server.engines.native.ops.cpu.library import SELF_TEST

pytestmark = pytest.mark.acceptance


@pytest.mark.parametrize(
    ("sanitizers", "runtime"),
    [("address,undefined", "libasan.so"), ("thread", "libtsan.so")],
)
def test_sanitizers_find_nothing(
    sanitizers: str, runtime: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "FLAGS", tuple("-O1" if flag == "-O3" else flag for flag in build.FLAGS))
    sets = choose_sets(AUTO)[:1]
    recover = "-fno-sanitize-recover=undefined" if "undefined" in sanitizers else ""
    compiler = build.find_compiler({**os.environ, "CXX": f"g++ -g1 -fsanitize={sanitizers} {recover}"})
    library = tmp_path / "libtgis_cpu.so"
    build.compile_library(library, compiler, sets, lambda *_: None, os.environ)

    # Python itself is not instrumented, so the runtime has to be there before everything else.
    preload = subprocess.run(["g++", f"-print-file-name={runtime}"], check=True, capture_output=True, text=True)
    environ = {
        **os.environ,
        "LD_PRELOAD": preload.stdout.strip(),
        "ASAN_OPTIONS": "detect_leaks=0",  # Python's own
        "TSAN_OPTIONS": "exitcode=66",
    }
    command = [sys.executable, "-m", SELF_TEST, str(library), sets[0].name]
    ended = subprocess.run(command, env=environ, capture_output=True, text=True)

    assert ended.returncode == 0, ended.stderr
    assert "Sanitizer" not in ended.stderr
    assert json.loads(ended.stdout) == []
