"""`make demo` shows a correct answer of the demo model."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import tgis_server

ROOT = Path(__file__).resolve().parents[2]
DEMO_MODEL = Path(tgis_server.__file__).parent / "demo_model"
spec = importlib.util.spec_from_file_location("demo", ROOT / "scripts" / "demo.py")
demo = importlib.util.module_from_spec(spec)
spec.loader.exec_module(demo)


def continuation_by_transformers(prompt: str, num_tokens: int) -> str:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(DEMO_MODEL)
    model = AutoModelForCausalLM.from_pretrained(DEMO_MODEL, dtype="float32")
    ids = tokenizer(prompt, return_tensors="pt").input_ids
    output = model.generate(ids, max_new_tokens=num_tokens, do_sample=False)
    return tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True)


def test_the_demo_streams_what_transformers_generates_and_exits_0():
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "demo.py"], capture_output=True, text=True, timeout=60, check=False
    )

    assert done.returncode == 0, done.stderr
    assert continuation_by_transformers(demo.PROMPT, demo.NUM_TOKENS) in done.stdout


def test_a_demo_whose_server_is_not_ready_in_time_blames_the_time(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(demo, "READY_TIMEOUT_S", 0)

    assert demo.main() == 1
    reason, log = capsys.readouterr().err.strip().splitlines()
    shutil.rmtree(Path(log.removeprefix("The server's log is ")).parent)
    assert reason == "The demo failed: the server was not ready within 0 s."


def test_a_demo_that_cannot_start_says_why_and_keeps_the_servers_log():
    environ = {"PATH": "/usr/bin:/bin", "MAX_BATCH_SIZE": "many"}

    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "demo.py"],
        capture_output=True,
        text=True,
        timeout=60,
        env=environ,
        check=False,
    )

    reason, log = done.stderr.strip().splitlines()
    path = Path(log.removeprefix("The server's log is "))
    text = path.read_text()
    shutil.rmtree(path.parent)
    assert done.returncode == 2
    assert reason.startswith("The demo failed: tgis: The variable MAX_BATCH_SIZE is 'many'")
    assert reason.removeprefix("The demo failed: ") in text
