"""The real caikit-tgis-backend, from its package index, starts `text-generation-launcher` as its subprocess."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

import tgis_server

BIN = Path(sys.executable).parent
DEMO_MODEL = Path(tgis_server.__file__).parent / "demo_model"
DRIVER = Path(__file__).with_name("caikit_driver.py")
REQUIREMENTS = ("caikit-tgis-backend==0.1.39", "fastapi", "psutil")
CACHE = Path(__file__).parents[2] / ".cache/caikit-tgis-backend-0.1.39"  # kept: only the first run installs

INSTALL_TIMEOUT_S = 120


@pytest.fixture(scope="module")
def caikit_python() -> Path:
    """The interpreter of an environment with the backend."""
    python, done = CACHE / "bin/python", CACHE / "installed"
    if done.exists():
        return python
    venv.create(CACHE, clear=True, with_pip=True)
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--retries", "0", "--timeout", "9"]
    try:
        subprocess.run([*pip, *REQUIREMENTS], check=True, capture_output=True, text=True, timeout=INSTALL_TIMEOUT_S)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"{REQUIREMENTS[0]} cannot be installed: {error.stderr.strip().splitlines()[-1]}")
    except subprocess.TimeoutExpired:
        pytest.skip(f"{REQUIREMENTS[0]} was not installed within {INSTALL_TIMEOUT_S} s")
    done.touch()
    return python


@pytest.mark.acceptance
def test_caikit_starts_the_launcher_recovers_from_a_lost_shard_and_stops_it(caikit_python: Path, tmp_path: Path):
    environ = {
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "TGIS_HOST": "127.0.0.1",
        "TERMINATION_LOG_DIR": str(tmp_path / "termination-log"),
    }
    report = tmp_path / "report.json"

    result = subprocess.run(
        [caikit_python, DRIVER, DEMO_MODEL, report],
        env=environ,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )

    assert result.returncode == 0, result.stdout + result.stderr
    facts = json.loads(report.read_text())
    assert facts["text"]
    assert facts == {"text": facts["text"], "recovered": facts["text"], "exit_codes": [5, 0], "left": []}
