"""``tgis bench engine``: what the engine reaches alone, without gRPC and without a scheduler."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from tgis_cli.model_files.completion import complete_model
from tgis_cli.terminal.options import with_serve_options
from tgis_server.options import load_config

app = typer.Typer(add_completion=False)
OFFERED = (
    *("revision", "dtype", "device", "num_shard", "kv_cache_memory", "max_sequence_length", "max_batch_tokens"),
    *("rehearse", "rehearse_step_ms", "deployment_framework", "cpu_pinning"),
)
MODEL_HELP = "Directory, or hub id in the local cache; without one the small demo model."
