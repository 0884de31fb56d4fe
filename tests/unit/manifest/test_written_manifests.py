"""How objects are written: YAML with comments, JSON, and directories."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st
from ruamel.yaml import YAML

from in_process import run_in_process
from manifests import MODEL, make, objects_of
from tgis_cli.manifest import to_json, to_yaml, write_manifest
from tgis_cli.manifest.explained import Explained, strip
from tgis_cli.manifest.names import MAX_NAME, name_after
from tgis_server.errors import UsageError

texts = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs")), max_size=12)
reasons = st.text("abc #:-", min_size=1, max_size=150)
values = st.recursive(
    texts | st.booleans() | st.integers(),
    lambda inner: st.one_of(
        st.lists(inner | st.builds(Explained, inner, reasons), max_size=3),
        st.dictionaries(st.text("abcd", min_size=1), inner | st.builds(Explained, inner, reasons), max_size=3),
    ),
    max_leaves=12,
)


@given(st.builds(Explained, st.dictionaries(st.text("abcd", min_size=1), values, min_size=1, max_size=4), reasons))
@example(Explained({"a": [Explained({"b": Explained({"c": Explained([], "why")}, "why")}, "why")]}, "why"))
def test_what_is_written_reads_the_same_with_comments(item: Explained) -> None:
    text = to_yaml([item])

    assert yaml.safe_load(text) == strip(item)
    assert YAML(typ="safe").load(text) == strip(item)


@pytest.mark.parametrize(
    "text",
    ["yes", "No", "on", "y", "null", "~", "0x1F", "1e3", "1_000", "010", "12:30:45", "2026-01-31", "1.5"],
)
def test_texts_that_a_reader_would_take_for_something_else_are_quoted(text: str) -> None:
    assert to_yaml([Explained({"value": text}, "why")]) == f'# why\nvalue: "{text}"\n'


@pytest.mark.parametrize("text", ["17Gi", "tgis:0.1.0", "--num-shard=2", "/models", "kubernetes.io/h2c"])
def test_other_texts_are_not_quoted(text: str) -> None:
    assert to_yaml([Explained({"value": text}, "why")]) == f"# why\nvalue: {text}\n"


def test_every_object_and_its_numbers_are_explained(environ: dict[str, str]) -> None:
    text = to_yaml(make(environ, flags={"max_sequence_length": "4096"}).objects)

    assert all(document.startswith("# ") for document in text.split("---\n"))
    lines = " ".join(line.strip(" #") for line in text.splitlines())
    assert "29.9 GiB of weights as float32 + 4.0 GiB of KV cache (16,384 tokens) + 456 MiB of processes" in lines
    assert "15 s (--drain-delay) + 90 s (--drain-timeout)" in lines
    assert "15.0 GiB from a disk with 100 MB/s, and 600 s for the rest: 153 x 5 s" in lines


def test_json_is_one_list_without_comments(environ: dict[str, str]) -> None:
    result = run_in_process("manifest", MODEL, "--gpu", "L4", "--json", environ=environ)

    listed = json.loads(result.stdout)
    assert (listed["apiVersion"], listed["kind"]) == ("v1", "List")
    assert [each["kind"] for each in listed["items"]] == [
        "ServiceAccount",
        "NetworkPolicy",
        "Service",
        "Service",
        "StatefulSet",
    ]


def test_yaml_and_json_have_the_same_objects_each_time(environ: dict[str, str]) -> None:
    first, second = (make(environ, gpu="L4", replicas=2, monitor=True).objects for _ in range(2))

    assert to_yaml(first) == to_yaml(second)
    assert list(yaml.safe_load_all(to_yaml(first))) == json.loads(to_json(first))["items"]


# Directories


def test_kustomize_gets_a_file_for_each_object_and_one_that_lists_them(environ: dict[str, str], tmp_path: Path) -> None:
    made = make(environ, target="kustomize", namespace="llm", model_source="image", replicas=2)

    files = write_manifest(made, tmp_path / "base")

    written = {file.name: yaml.safe_load(file.read_text()) for file in files}
    kustomization = written.pop("kustomization.yaml")
    assert kustomization["namespace"] == "llm"
    assert kustomization["resources"] == sorted(written)
    assert {"service.yaml", "service-pods.yaml"} < written.keys()
    assert sorted(map(str, written.values())) == sorted(map(str, objects_of(made).values()))


def test_an_earlier_manifest_is_replaced_as_a_whole(environ: dict[str, str], tmp_path: Path) -> None:
    write_manifest(make(environ, target="kustomize", model_source="image", replicas=2), tmp_path)

    files = write_manifest(make(environ, target="kustomize", model_source="image"), tmp_path)

    assert sorted(tmp_path.iterdir()) == files
    assert "poddisruptionbudget.yaml" not in [file.name for file in files]


@pytest.mark.parametrize("foreign", ["notes.txt", "service.yaml", "patches"])
def test_a_directory_with_other_files_is_left_alone(foreign: str, environ: dict[str, str], tmp_path: Path) -> None:
    if foreign == "patches":
        (tmp_path / foreign).mkdir()
    else:
        (tmp_path / foreign).write_text("mine\n")

    with pytest.raises(UsageError, match=f"did not make .*{foreign}"):
        write_manifest(make(environ, model_source="image"), tmp_path)

    assert [file.name for file in tmp_path.iterdir()] == [foreign]


def test_a_directory_that_cannot_be_written_is_named(environ: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(UsageError, match=r"--output .*file is not a directory"):
        write_manifest(make(environ, model_source="image"), tmp_path / "file")


def test_the_command_writes_what_it_lists(environ: dict[str, str], tmp_path: Path) -> None:
    arguments = (MODEL, "--for", "kserve", "--gpu", "L4", "--output", tmp_path / "out")

    result = run_in_process("manifest", *arguments, environ=environ)

    assert result.stdout.decode().split() == [str(file) for file in sorted((tmp_path / "out").iterdir())]


# Names


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("ibm-granite/granite-3.3-2b-instruct", "granite-3-3-2b-instruct"),
        ("org/Some_Model.v2", "some-model-v2"),
        ("org/7B-chat", "tgis-7b-chat"),
        ("./llama/", "llama"),
        ("org/---", "model"),
    ],
)
def test_objects_are_named_after_the_model(model: str, name: str) -> None:
    assert name_after(model) == name


def test_long_names_are_cut_and_stay_different() -> None:
    names = {name_after(f"org/{'very-' * 20}long-{number}") for number in range(3)}

    assert {len(name) <= MAX_NAME for name in names} == {True}
    assert len(names) == 3


def test_a_given_name_and_namespace_are_those_of_all_objects(environ: dict[str, str]) -> None:
    made = make(environ, name="chat", namespace="llm", replicas=2, autoscale="keda", monitor=True)

    assert {(each["metadata"]["name"], each["metadata"]["namespace"]) for each in objects_of(made).values()} == {
        ("chat", "llm"),
        ("chat-pods", "llm"),
    }


def test_warnings_of_the_plan_go_to_stderr(environ: dict[str, str]) -> None:
    result = run_in_process("manifest", MODEL, "--gpu", "L4", environ=environ)

    assert "max_sequence_length lowered from 131072" in result.stderr.decode().replace("\n", " ")
    assert "warning" not in result.stdout.decode()
