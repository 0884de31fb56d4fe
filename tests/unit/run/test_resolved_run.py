"""The file through which a run's configuration reaches its processes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from tgis_server.options import ServeConfig, load_config
from tgis_server.run import Run, save_unresolved

RUN = Run(
    config=ServeConfig(tls_cert_path=Path("c"), tls_key_path=Path("k"), fault=None),
    run_dir=Path("/run"),
    model_id="m",
    model_dir=Path("/models/m"),
    engine="native",
    device="cpu",
    dtype="float32",
    num_shard=2,
    max_sequence_length=2048,
    is_max_sequence_length_explicit=False,
    max_batch_tokens=512,
    tokenization_workers=1,
    launcher_phases=(("starting", 1.5), ("checking the machine", 2.0)),
)


def test_a_run_is_read_back_as_it_was_saved(tmp_path: Path):
    run = replace(RUN, run_dir=tmp_path)

    run.save()

    assert Run.read(run.file, {}) == run


def test_who_reads_the_file_while_it_is_replaced_gets_a_whole_one(tmp_path: Path):
    save_unresolved(tmp_path, ServeConfig(model_name="org/name"))

    with (tmp_path / "serve.json").open() as opened:
        replace(RUN, run_dir=tmp_path).save()
        before = json.load(opened)

    assert (before["model_id"], before["num_shard"]) == ("org/name", 0)
    assert [file.name for file in tmp_path.iterdir()] == ["serve.json"]


def test_credentials_in_a_url_are_neither_shown_nor_written(tmp_path: Path):
    loaded = load_config({"otlp_endpoint": "https://me:word@host:4317/path"}, {})
    run = replace(RUN, config=loaded.config, run_dir=tmp_path)

    run.save()

    assert loaded.as_dict()["otlp_endpoint"]["value"] == "https://***@host:4317/path"
    assert "https://***@host:4317/path" in run.file.read_text()
    assert "word" not in run.file.read_text()
    assert Run.read(run.file, {"OTLP_ENDPOINT": "https://me:word@host:4317/path"}) == run
