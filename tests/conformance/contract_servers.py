"""Servers that the suite starts for itself: `tgis launch` on free ports, stopped when the tests are over."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tgis_server

READY_S = 120.0
STOP_S = 20.0
KEPT_ENVIRON = ("PATH", "HOME", "LANG", "LD_LIBRARY_PATH", "TMPDIR", "VIRTUAL_ENV")

CALM = {"OMP_WAIT_POLICY": "passive"}  # waiting threads sleep: three servers share the cores with other work

DEMO_MODEL = Path(tgis_server.__file__).parent / "demo_model"
SMALL_POOL_TOKENS = 640  # 40 KV blocks, too few for concurrent calls


@dataclass(frozen=True)
class Variant:
    """A way of serving that must not affect the contract: a model, shards, and how keys and values are kept."""

    num_shard: int
    model_type: str = ""  # of a tiny random model; empty: the demo model
    config: Mapping[str, Any] = field(default_factory=dict)  # changes to its config
    has_prefix_cache: bool = True
    kv_bytes_per_token: int = 0  # of all shards; makes the pool small

    def options(self, model_dir: Path) -> list[str]:
        """Options for ``tgis launch``."""
        options = ["--num-shard", str(self.num_shard)]
        if self.model_type:
            options += ["--model-name", str(model_dir)]
        if not self.has_prefix_cache:
            options += ["--no-prefix-cache"]
        if self.kv_bytes_per_token:
            memory = SMALL_POOL_TOKENS * self.kv_bytes_per_token // self.num_shard
            options += ["--max-sequence-length", str(SMALL_POOL_TOKENS), "--kv-cache-memory", str(memory)]
        return options

    def write_model(self, directory: Path) -> Path:
        """Return the directory of the model, which is made in ``directory`` unless it is the demo model."""
        if not self.model_type:
            return DEMO_MODEL
        import tiny

        numbers = json.loads((DEMO_MODEL / "config.json").read_text())
        same = {name: numbers[name] for name in ("vocab_size", "bos_token_id", "eos_token_id")}
        tiny.make_checkpoint(directory, self.model_type, max_position_embeddings=2048, **same, **self.config)
        shutil.copy(DEMO_MODEL / "tokenizer.json", directory)
        return directory


QWEN3: dict[str, Any] = {"model_type": "qwen3", "config": {"head_dim": 16}}
MISTRAL: dict[str, Any] = {"model_type": "mistral", "config": {"sliding_window": 20}}
KV_BYTES = 2 * 4 * 3 * 2 * 16  # keys and values, float32, 3 layers, 2 heads of 16
# Models, numbers of shards and ways of keeping keys and values, in every pair that may interact. Families on several
# shards are compared with transformers in tests/models, without servers.
VARIANTS = {
    "demo-1": Variant(1),
    "qwen3-2-small-pool": Variant(2, **QWEN3, kv_bytes_per_token=KV_BYTES),
    "mistral-1-small-pool": Variant(1, **MISTRAL, kv_bytes_per_token=KV_BYTES),
    "mistral-2-no-prefix-cache": Variant(2, **MISTRAL, has_prefix_cache=False),
}
# For rows that depend only on the front-end or the sampler: models, shards and pools make no difference to them.
ONE_SERVER = ("demo-1",)


@dataclass
class Launched:
    """A running `tgis launch`."""

    base: Path  # its run directory is created in this one
    process: subprocess.Popen[bytes]

    def wait_until_ready(self) -> dict[str, Any]:
        """Wait for what the launcher writes once it serves, such as its addresses."""
        deadline = time.monotonic() + READY_S
        while not (files := list(self.base.glob("tgis-*/ready.json"))):
            output = (self.base / "output").read_text()
            assert self.process.poll() is None, f"the launcher ended:\n{output}"
            assert time.monotonic() < deadline, f"the server was not ready within {READY_S} s:\n{output}"
            time.sleep(0.02)
        facts: dict[str, Any] = json.loads(files[0].read_text())
        return facts

    def ask_to_stop(self) -> None:
        """Ask once to drain and once more to hurry."""
        for _ in range(2):
            self.process.send_signal(signal.SIGTERM)
            time.sleep(0.05)

    def wait_until_stopped(self) -> None:
        """Wait for the launcher, which stops what it started."""
        try:
            self.process.wait(STOP_S)
        finally:
            self.process.kill()
            self.process.wait()
            shutil.rmtree(self.base, ignore_errors=True)


def launch(*options: str) -> Launched:
    """Start `tgis launch` with these options; if one is repeated, the last one counts."""
    base = Path(tempfile.mkdtemp(prefix="t-"))  # short, because socket paths are limited
    command: Sequence[str | Path] = [
        Path(sys.executable).parent / "tgis",
        *("launch", "--host", "127.0.0.1", "--grpc-port", "0", "--port", "0", *options),
    ]
    environ = {name: value for name, value in os.environ.items() if name in KEPT_ENVIRON}
    with (base / "output").open("wb") as output:
        process = subprocess.Popen(
            command,
            env=environ | {"TGIS_RUN_DIR": str(base)} | CALM,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    return Launched(base, process)
