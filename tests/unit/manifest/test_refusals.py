"""What cannot be served or contradicts itself ends with a sentence that names both, and nothing on stdout."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from in_process import run_in_process
from manifests import MODEL, make, write_model
from tgis_server.errors import ModelError, NotEnoughDevices, UsageError

CONTRADICTIONS: list[tuple[dict[str, Any], str]] = [
    ({"autoscale": "hpa", "replicas": 4, "max_replicas": 2}, r"--replicas 4 up to --max-replicas 2"),
    ({"max_replicas": 2}, r"--max-replicas 2 needs --autoscale"),
    ({"prometheus": "http://p:9090", "autoscale": "hpa"}, r"--prometheus http://p:9090 .* --autoscale keda"),
    ({"prometheus": "p:9090", "autoscale": "keda"}, r"--prometheus is 'p:9090', but must be a URL"),
    ({"prometheus": "http://me:word@p:9090", "autoscale": "hpa"}, r"^--prometheus contains credentials"),
    ({"autoscale": "keda"}, r"--autoscale keda needs --namespace"),
    ({"name": "My_Model"}, r"--name is 'My_Model', but must be at most 47 lower-case letters"),
    ({"name": "1b"}, r"--name is '1b', .* beginning with a letter"),
    ({"namespace": "a.b"}, r"--namespace is 'a\.b'"),
    ({"image": "tgis:latest"}, r"--image tgis:latest has the tag latest"),
    ({"image": "host:5000/tgis"}, r"--image host:5000/tgis has no tag"),
    ({"tls_secret": "No"}, r"--tls-secret is 'No'"),
    ({"client_ca": "ca"}, r"--client-ca ca needs --tls-secret"),
    ({"flags": {"http_tls": "server"}}, r"--http-tls server needs --tls-secret"),
    ({"flags": {"http_tls": "mutual"}, "tls_secret": "tls"}, r"--http-tls mutual needs --client-ca"),
    (
        {"flags": {"http_tls": "mutual"}, "tls_secret": "tls", "client_ca": "ca", "monitor": True},
        r"--http-tls mutual .* --monitor",
    ),
    ({"flags": {"tls_cert_path": "a.crt", "tls_key_path": "a.key"}}, r"--tls-cert-path a\.crt .* --tls-secret"),
    ({"flags": {"tls_cert_path": "a.crt"}, "tls_secret": "tls"}, r"--tls-secret tls and --tls-cert-path a\.crt"),
    ({"flags": {"host": "127.0.0.1"}}, r"--host 127\.0\.0\.1 would hide the server"),
    ({"flags": {"port": "0"}}, r"--port 0 lets the server choose"),
    ({"flags": {"log_file": "/var/log/tgis.log"}}, r"--log-file /var/log/tgis\.log cannot be written in the pod"),
    ({"flags": {"run_dir": "/run/tgis"}}, r"--run-dir /run/tgis cannot be written in the pod"),
    ({"flags": {"device": "cuda"}}, r"--device cuda needs --gpu"),
    ({"flags": {"device": "cpu"}, "gpu": "L4"}, r"--gpu and --device cpu contradict each other"),
    ({"cpu": "64GiB", "gpu": "L4"}, r"--gpu and --cpu contradict each other"),
    ({"model_source": "pvc"}, r"--model-source is 'pvc', but must be pvc:CLAIM"),
    ({"model_source": "bundle:claim"}, r"--model-source is 'bundle:claim'"),
    ({"model_source": "pvc:claim/../x"}, r"--model-source is 'pvc:claim/\.\./x'"),
    ({"model_source": "hubb"}, r"--model-source is 'hubb', .* Did you mean hub\?"),
    ({"model_source": "image", "hf_token_secret": "hf"}, r"--hf-token-secret hf and --model-source image"),
    ({"model_source": "hub", "model": None}, r"--model-source hub and the demo model contradict each other"),
    ({"target": "kserve", "model_source": "bundle:c/f.tar"}, r"--for kserve and --model-source bundle:c/f\.tar"),
    ({"target": "kserve", "model_source": "hub:c"}, r"--for kserve and --model-source hub:c"),
    ({"target": "kserve", "model_source": "pvc:c"}, r"--model-source pvc:c/PATH"),
]


@pytest.mark.parametrize(("wanted", "sentence"), CONTRADICTIONS)
def test_contradictions_name_both_options(wanted: dict[str, Any], sentence: str, environ: dict[str, str]) -> None:
    with pytest.raises(UsageError) as refused:
        make(environ, **wanted)

    assert re.search(sentence, str(refused.value))


@pytest.mark.parametrize("source", [None, "hub"])
def test_a_directory_of_this_machine_needs_a_place_in_the_cluster(source: str | None, tmp_path: Path) -> None:
    model = str(write_model(tmp_path / "llama"))

    with pytest.raises(UsageError, match=f"{model} is a directory of this machine"):
        make({}, model, model_source=source)


def test_a_mirror_with_a_password_is_not_printed(environ: dict[str, str]) -> None:
    with pytest.raises(UsageError, match=r"HF_ENDPOINT contains credentials"):
        make(environ | {"HF_ENDPOINT": "https://me:word@hub.example.com"})


@pytest.mark.parametrize("wanted", [{"gpu": "2GiB"}, {"cpu": "8GiB"}, {"gpu": "16GiBx2", "flags": {"num_shard": "1"}}])
def test_a_model_that_does_not_fit_is_refused_as_by_a_plan(wanted: dict[str, Any], environ: dict[str, str]) -> None:
    with pytest.raises(NotEnoughDevices):
        make(environ, **wanted)


def test_a_model_that_no_engine_serves_is_refused(tmp_path: Path) -> None:
    model = write_model(tmp_path / "mamba")
    (model / "config.json").write_text('{"model_type": "mamba", "architectures": ["MambaForCausalLM"]}')

    with pytest.raises(ModelError):
        make({}, str(model), model_source="image")


@pytest.mark.parametrize(
    ("arguments", "exit_code", "sentence"),
    [
        ((MODEL, "--cpu", "8GiB"), 4, "does not fit into --cpu 8GiB.* 29.9 GiB of weights.*--dtype bfloat16"),
        ((MODEL, "--cpu", "64GiB", "--kv-cache-memory", "1KiB"), 4, "--kv-cache-memory 1 KiB is less"),
        ((MODEL, "--for", "kustomize"), 2, "--for kustomize .* --output DIR"),
        ((MODEL, "--for", "kustomise"), 2, r"--for is 'kustomise', .* deployment, kserve, kustomize\. Did you mean"),
        ((MODEL, "--autoscale", "vpa"), 2, r"--autoscale is 'vpa', but must be one of hpa, keda\."),
        ((MODEL, "--json", "--output", "out"), 2, "--json .* --output out"),
        ((MODEL, "--output", ""), 2, "--output is empty"),
        ((MODEL, "--replicas", "0"), 2, "--replicas must be"),
    ],
)
def test_a_refusal_is_a_sentence_and_prints_no_manifest(
    arguments: tuple[str, ...], exit_code: int, sentence: str, environ: dict[str, str]
) -> None:
    result = run_in_process("manifest", *arguments, environ=environ)

    assert result.returncode == exit_code
    assert "apiVersion" not in result.stdout.decode()
    assert re.search(sentence, result.stderr.decode().replace("\n", " "))
