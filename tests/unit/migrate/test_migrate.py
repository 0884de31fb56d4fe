"""`tgis migrate`: what it finds in files of every kind, its verdicts, and its advice."""

from __future__ import annotations

import contextlib
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from tgis_cli.migrate import MigrationReport, examine_all, read_containers, read_settings_file
from tgis_cli.migrate.model_family import explain_unserved
from tgis_cli.migrate.text import conclude
from tgis_server.errors import UsageError

ORIGINAL = Path(__file__).parent / "manifests/original.yaml"
TGIS = Path(sys.executable).parent / "tgis"

Change = dict[str, Any]


@pytest.fixture
def examine(tmp_path: Path):
    """Write texts to files and return the reports on all of them."""

    def examine_texts(*texts: str, **named: str) -> list[MigrationReport]:
        files = {f"file-{index}": text for index, text in enumerate(texts)} | named
        for name, text in files.items():
            (tmp_path / name).write_text(text)
        return list(examine_all(read_containers([read_settings_file(str(tmp_path / name)) for name in files])))

    return examine_texts


def verdicts(report: MigrationReport) -> dict[str, str]:
    return {f"{finding.name}={finding.value}": str(finding.verdict) for finding in report.findings}


def problems(report: MigrationReport) -> list[str]:
    return [advice.text for advice in report.advice if advice.is_problem]


def topics(report: MigrationReport) -> list[str]:
    return [advice.topic for advice in report.advice]


def pod(container: Change, **spec: Any) -> str:
    """A pod whose one container has an image, a model and the given fields."""
    container = {"name": "server", "image": "text-gen-server", "args": LAUNCH} | container
    return yaml.safe_dump({"kind": "Pod", "metadata": {"name": "p"}, "spec": {"containers": [container]} | spec})


LAUNCH = ["text-generation-launcher", "--model-name", "/m", "--dtype", "float16", "--max-batch-size", "12"]
GRACE = "terminationGracePeriodSeconds"
CALM = {  # gets no advice
    "readinessProbe": {"httpGet": {"path": "/health", "port": 3000}},
    "terminationGracePeriodSeconds": 120,
}


# -- reading


def test_the_original_manifest_works_unchanged():
    (report,) = examine_all(read_containers([read_settings_file(str(ORIGINAL))]))

    assert not report.will_fail
    assert verdicts(report) == {
        "MODEL_NAME=ibm-granite/granite-3.3-8b-instruct": "same",
        "DEPLOYMENT_FRAMEWORK=tgis_native": "same",
        "FLASH_ATTENTION=true": "no effect",
        "DTYPE_STR=float16": "renamed",
        "MAX_SEQUENCE_LENGTH=4096": "same",
        "MAX_NEW_TOKENS=1536": "same",
        "MAX_BATCH_SIZE=12": "same",
        "MAX_CONCURRENT_REQUESTS=64": "same",
        "NUM_GPUS=2": "renamed",
        "CUDA_VISIBLE_DEVICES=0,1": "same",
        "TRANSFORMERS_CACHE=/shared_model_storage/transformers_cache": "renamed",
    }
    assert topics(report) == ["probes"] * 4


def test_a_finding_has_its_line():
    (report,) = examine_all(read_containers([read_settings_file(str(ORIGINAL))]))

    lines = ORIGINAL.read_text().splitlines()
    assert all(finding.name in lines[finding.line - 1] for finding in report.findings)


def test_variables_in_flags_are_filled_in(examine):
    container = {
        "args": ["text-generation-launcher", "--num-shard=$(SHARDS)", "-p", "80", "--model-name", "$(UNKNOWN)"],
        "env": [{"name": "SHARDS", "value": "2"}],
    }

    (report,) = examine(pod(container))

    assert verdicts(report) == {"--num-shard=2": "same", "-p=80": "same", "--model-name=($(UNKNOWN))": "same"}


def test_flags_in_a_patch_belong_to_the_launcher(examine):
    patch = {"kind": "Deployment", "containers": [{"args": ["--num-shard=x", "-p99999", "--unheard-of"]}]}

    (report,) = examine(yaml.safe_dump(patch))

    assert verdicts(report) == {"--num-shard=x": "refused", "--port=99999": "refused"}
    assert problems(report) == ["text-generation-launcher does not know --unheard-of."]


def test_the_executable_is_found_in_a_shell_script(examine):
    script = "set -e\nsleep 1; exec text-generation-launcher --model-name $NAME --json-output"
    container = {"command": ["/bin/sh", "-c"], "args": [script], "env": [{"name": "NAME", "value": "/m"}]}

    (report,) = examine(pod(container))

    assert verdicts(report) == {"--model-name=/m": "same", "--json-output=true": "same"}


def test_config_maps_in_other_files_are_used(examine):
    config_map = "kind: ConfigMap\nmetadata: {name: limits}\ndata: {MAX_NEW_TOKENS: '0', mode: fast}\n"
    container = {
        "envFrom": [{"configMapRef": {"name": "limits"}}, {"secretRef": {"name": "hidden"}}],
        "env": [{"name": "PT2_COMPILE", "valueFrom": {"configMapKeyRef": {"name": "limits", "key": "mode"}}}],
    }

    report = examine(pod(container), config_map)[0]

    assert verdicts(report)["MAX_NEW_TOKENS=0"] == "refused"
    assert verdicts(report)["PT2_COMPILE=fast"] == "no effect"
    assert "Secret hidden is not among the files: its variables are not checked." in [a.text for a in report.advice]


def test_a_value_in_a_secret_is_judged_by_its_name(examine):
    reference = {"valueFrom": {"secretKeyRef": {"name": "tls", "key": "path"}}}

    (report,) = examine(pod({"env": [{"name": "QUANTIZE", **reference}, {"name": "OTLP_ENDPOINT", **reference}]}))

    assert verdicts(report)["QUANTIZE=(Secret tls)"] == "refused"
    assert verdicts(report)["OTLP_ENDPOINT=(Secret tls)"] == "same"


def test_patches_and_generators_of_a_kustomization_are_read(examine):
    kustomization = """
kind: Kustomization
configMapGenerator:
- {name: a, literals: [PREFIX_STORE_PATH=/p]}
patches:
- patch: |
    - {op: add, path: /spec/template/spec/containers/0/env/-, value: {name: ESTIMATE_MEMORY, value: manual}}
- patch: |
    kind: Deployment
    spec: {template: {spec: {containers: [{name: server, env: [{name: NUM_GPUS, value: "8"}]}]}}}
"""
    found = {key: verdict for report in examine(kustomization) for key, verdict in verdicts(report).items()}

    assert found == {
        "PREFIX_STORE_PATH=/p": "not there yet",
        "ESTIMATE_MEMORY=manual": "no effect",
        "NUM_GPUS=8": "renamed",
    }


@pytest.mark.parametrize(
    "spec",
    [
        {"kind": "ServingRuntime", "spec": {"containers": [{"env": [{"name": "MAX_NEW_TOKENS", "value": "7"}]}]}},
        {
            "kind": "InferenceService",
            "spec": {"predictor": {"model": {"runtime": "tgis", "env": [{"name": "MAX_NEW_TOKENS", "value": "7"}]}}},
        },
        {
            "kind": "List",
            "items": [{"kind": "Pod", "spec": {"containers": [{"env": [{"name": "MAX_NEW_TOKENS", "value": "7"}]}]}}],
        },
    ],
    ids=lambda spec: spec["kind"],
)
def test_containers_are_found_in_objects_of_any_kind(examine, spec: Change):
    assert [verdicts(report) for report in examine(yaml.safe_dump(spec))] == [{"MAX_NEW_TOKENS=7": "same"}]


@pytest.mark.parametrize(
    "image", ["quay.io/opendatahub/caikit-tgis-serving:1", "caikit-nlp-tgis", "registry/tgis-team/postgres", "proxy"]
)
def test_containers_next_to_the_server_are_ignored(examine, image: str):
    assert examine(pod({"image": image, "args": ["run"], "env": [{"name": "PORT", "value": "80"}]})) == []


def test_compose_services_with_defaults_anchors_and_env_files_are_read(examine, tmp_path: Path):
    (tmp_path / "my.env").write_text("PT2_COMPILE=true\nMAX_NEW_TOKENS=5\n")
    compose = """
x-env: &env {DTYPE: "${DTYPE:-float16}"}
services:
  tgis:
    image: tgis
    command: text-generation-launcher --model-name ${MODEL}
    environment: {<<: *env, MAX_NEW_TOKENS: 7}
    env_file: my.env
    stop_grace_period: 2m
  db: {image: postgres}
"""
    (report,) = examine(compose)

    assert verdicts(report) == {
        "--model-name=(${MODEL})": "same",
        "DTYPE=float16": "same",
        "PT2_COMPILE=true": "no effect",
        "MAX_NEW_TOKENS=7": "same",
    }
    assert "stop" not in topics(report)


@pytest.mark.parametrize("entry", ["stop_grace_period: [1]", "stop_grace_period: 1.2.3s", "environment: [!!int 5]"])
def test_an_invalid_compose_entry_is_tolerated(examine, entry: str):
    (report,) = examine(f"services: {{a: {{image: tgis, {entry}}}}}")

    assert "stop" in topics(report)


def test_docker_run_in_a_script_is_read(examine, tmp_path: Path):
    (tmp_path / "my.env").write_text("# comment\nexport MAX_NEW_TOKENS='5'\nFROM_SHELL\n")
    script = r"""#!/bin/bash
export SIZE=4
sudo docker run --rm -it --gpus '"device=0,1"' -e MAX_BATCH_SIZE=$SIZE --env-file my.env -eNUM_SHARD=2 \
    -p 9000:8033 --shm-size 1g tgis text-generation-launcher --model-name /m --dtype float16 # serve
"""
    (report,) = examine(script)

    assert verdicts(report) == {
        "--model-name=/m": "same",
        "--dtype=float16": "same",
        "MAX_NEW_TOKENS=5": "same",
        "MAX_BATCH_SIZE=4": "same",
        "NUM_SHARD=2": "same",
    }
    assert topics(report) == ["stop"]
    assert {finding.name: finding.line for finding in report.findings} == {
        "--model-name": 4,
        "--dtype": 4,
        "MAX_NEW_TOKENS": 0,
        "MAX_BATCH_SIZE": 3,
        "NUM_SHARD": 3,
    }


def test_quoted_text_with_a_line_continuation_stays_one_word(examine):
    script = """docker run -e DTYPE=float16 tgis sh -c 'text-generation-launcher \\
  --model-name /m' \\
  && text-generation-launcher --port 80
"""
    reports = examine(script)

    assert [verdicts(report) for report in reports] == [
        {"--model-name=/m": "same", "DTYPE=float16": "same"},
        {"--port=80": "same"},
    ]
    assert [report.container.line for report in reports] == [1, 3]


def test_an_env_file_is_judged_on_its_own(examine):
    (report,) = examine("# ours\nMAX_BATCH_SIZE=abc\nHTTP_PROXY=http://proxy\nMAX_NEW_TOKEN=3\n")

    assert verdicts(report) == {"MAX_BATCH_SIZE=abc": "refused", "MAX_NEW_TOKEN=3": "unknown"}
    assert report.findings[1].todo == "Did you mean MAX_NEW_TOKENS?"


def test_a_bare_command_line_is_read_with_its_variables(examine):
    (report,) = examine("FLASH_ATTENTION=true text-generation-launcher --model-name /m\n")

    assert verdicts(report) == {"--model-name=/m": "same", "FLASH_ATTENTION=true": "no effect"}


# -- problems


@pytest.mark.parametrize(
    ("container", "problem"),
    [
        ({"args": ["text-generation-launcher"]}, "No model is given"),
        ({"args": [*LAUNCH, "--nope"]}, "text-generation-launcher does not know --nope."),
        ({"args": ["text-generation-server", "quantize", "m", "out"]}, "quantize is not part of this version"),
        ({"args": ["text-generation-server", "download-weights", "m", "--no"]}, "does not know --no"),
        ({"args": ["python", "-m", "vllm_tgis_adapter"]}, "The command is the vLLM adapter's"),
        (
            {"env": [{"name": "NUM_GPUS", "value": "2"}, {"name": "NUM_SHARD", "value": "4"}]},
            "different values (2 and 4)",
        ),
        ({"env": [{"name": "GRPC_PORT", "value": "3000"}]}, "--grpc-port and --port are both 3000"),
        (
            {"env": [{"name": "HF_HUB_CACHE", "value": "/a"}, {"name": "TRANSFORMERS_CACHE", "value": "/b"}]},
            "TRANSFORMERS_CACHE and HF_HUB_CACHE env vars can't be set to different values",
        ),
        ({"securityContext": {"readOnlyRootFilesystem": True}}, "nothing writable is mounted at /tmp"),
        (
            {"args": [*LAUNCH, "--num-shard", "4"], "resources": {"limits": {"nvidia.com/gpu": 2}}},
            "Shards set: 4, GPUs given: 2. Set NUM_SHARD to 2",
        ),
        (
            {"livenessProbe": {"httpGet": {"path": "/health", "port": 80}}},
            "queries port 80, but the server listens on 3000",
        ),
        ({"startupProbe": {"httpGet": {"path": "/health", "port": 3000, "scheme": "HTTPS"}}}, "needs scheme: HTTP"),
        (
            {"livenessProbe": {"httpGet": {"path": "/healthz", "port": 3000}}},
            "/healthz, which answers 404: use",
        ),
        (
            {"readinessProbe": {"httpGet": {"port": 3000}}},
            "queries /, which answers 404: use /health/ready.",
        ),
        (
            {"startupProbe": {"grpc": {"port": 8033, "service": "x"}}},
            "service x, which is unknown: use startup",
        ),
    ],
)
def test_a_server_that_would_not_start_or_never_become_ready_has_a_problem(examine, container: Change, problem: str):
    (report,) = examine(pod(container))

    assert report.will_fail
    assert any(problem in text for text in problems(report)), problems(report)


@pytest.mark.parametrize(
    "probe",
    [
        *({"httpGet": {"path": path, "port": 3000}} for path in ("/health", "health/live?verbose", "/metrics", "${P}")),
        *({"grpc": {"port": 8033, "service": name}} for name in ("", "fmaas.GenerationService", "live")),
    ],
    ids=str,
)
def test_probes_may_query_whatever_the_server_answers(examine, probe: Change):
    (report,) = examine(pod({"livenessProbe": probe}))

    assert problems(report) == []


def test_a_command_line_that_cannot_be_parsed_gets_no_further_advice(examine):
    (report,) = examine(pod(CALM | {"args": ["text-generation-launcher", "--model-name", "/m", "--max-batch-size"]}))

    assert problems(report) == ["text-generation-launcher: Option '--max-batch-size' requires an argument."]
    assert "defaults" not in topics(report)


def test_conflicting_settings_do_not_hide_other_problems(examine):
    env = {"TLS_CERT_PATH": "/c", "NUM_GPUS": "4", "NUM_SHARD": "2", "HF_HUB_CACHE": "/a", "TRANSFORMERS_CACHE": "/b"}
    container = {
        "env": [{"name": name, "value": value} for name, value in env.items()],
        "securityContext": {"readOnlyRootFilesystem": True},
        "resources": {"limits": {"nvidia.com/gpu": 1}},
    }

    (report,) = examine(pod(container))

    assert [advice.topic for advice in report.advice if advice.is_problem] == ["start"] * 3 + ["disk", "GPUs"]


def test_a_service_whose_port_variable_is_one_of_our_options_is_a_problem(examine):
    service = "\n---\nkind: Service\nmetadata: {name: grpc}\n"

    (linked,) = examine(pod({}) + service)
    (unlinked,) = examine(pod({}, enableServiceLinks=False) + service)

    assert problems(linked) == [
        "The Service grpc makes Kubernetes set GRPC_PORT=tcp://…: set enableServiceLinks: false."
    ]
    assert problems(unlinked) == []


# -- advice


def test_a_complete_pod_gets_no_advice(examine):
    probes = {"readinessProbe": CALM["readinessProbe"]}

    (report,) = examine(pod(probes, terminationGracePeriodSeconds=100))

    assert report.advice == []


@pytest.mark.parametrize(
    ("container", "spec", "topic", "text"),
    [
        ({}, {}, "stop", "terminationGracePeriodSeconds is not set (Kubernetes: 30 s), but answers"),
        ({}, {GRACE: 60}, "stop", "terminationGracePeriodSeconds is 60 s, but answers may take 90 s"),
        ({"args": LAUNCH[:3]}, {}, "defaults", "MAX_BATCH_SIZE is not set: 256 instead of 12"),
        ({"args": [*LAUNCH, "--num-shard", "2"]}, {}, "memory", "2 shards on GPUs use shared memory"),
        (
            {"resources": {"limits": {"nvidia.com/gpu": 2}}, "args": [*LAUNCH, "--num-shard", "1"]},
            {},
            "GPUs",
            "2 GPUs are",
        ),
        (
            {"env": [{"name": "HF_TOKEN", "value": "hf_x"}]},
            {},
            "secrets",
            "HF_TOKEN is in plain text and is not needed",
        ),
        (
            {"env": [{"name": "S3_SECRET", "value": "x"}]},
            {},
            "secrets",
            "S3_SECRET is in plain text: use a secret",
        ),
        ({"ports": [{"containerPort": 3000}, {"containerPort": 80}]}, {}, "ports", "container's ports 3000, 80."),
        ({"livenessProbe": {"httpGet": {"path": "/health", "port": 3000}}}, {}, "probes", "/health/live does not fail"),
        ({"args": ["start.sh"]}, {}, "command", "start.sh is not one of the original's"),
    ],
)
def test_advice_on_the_surroundings_of_a_container(examine, container: Change, spec: Change, topic: str, text: str):
    (report,) = examine(pod(container, **spec))

    assert any(advice.topic == topic and text in advice.text for advice in report.advice), report.advice
    assert "hf_x" not in str(report.advice)


# -- bad input


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("kind: [\nb: c", "line 2 is not valid YAML"),
        (
            "kind: Pod\nspec: {{ .Values.x }}\n  y: z",
            "It looks like a template: use the output of `helm template`.",
        ),
        ("hello: 1", "is neither a Kubernetes manifest nor a compose file"),
        ("\n", "file-0 is empty."),
        ("kind: Pod\nspec: &a {containers: [*a]}", "line 2 is not valid YAML: found unconstructable recursive node."),
    ],
)
def test_bad_input_is_refused_with_a_sentence(examine, text: str, sentence: str):
    with pytest.raises(UsageError) as caught:
        examine(text)

    assert sentence in str(caught.value)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("stdin", [Terminal, io.StringIO])
def test_waiting_for_input_from_a_terminal_is_announced(monkeypatch, capsys, stdin: type[io.StringIO]):
    monkeypatch.setattr(sys, "stdin", stdin("MAX_NEW_TOKENS=1"))

    read_settings_file("-")

    assert ("Ctrl-D ends the input" in capsys.readouterr().err) is (stdin is Terminal)


FIELDS = (
    "command args env envFrom name value valueFrom configMapKeyRef configMapRef key ports containerPort resources "
    "limits volumeMounts startupProbe readinessProbe httpGet exec path port image environment env_file tmpfs volumes"
)
PARTS = st.recursive(
    st.none()
    | st.text("a$({=- \n\0", max_size=4)
    | st.sampled_from(["sh", "-c", "text-generation-server", "serve", "8", "²", "1.2.3s"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(FIELDS.split()), inner, max_size=4),
    max_leaves=20,
)


@settings(deadline=None, max_examples=100)
@given(PARTS, PARTS, PARTS)
def test_any_file_gives_reports_or_a_sentence(tmp_path_factory, first: Any, second: Any, third: Any):
    file = tmp_path_factory.mktemp("fuzz") / "file"
    container = {"name": "tgis", "image": "tgis", "args": first, "env": second, "volumeMounts": third, "ports": third}
    compose = {"image": "tgis", "command": first, "environment": second, "env_file": third, "volumes": third}
    compose |= {"stop_grace_period": second}
    documents = [
        {"kind": "Pod", "spec": {"containers": [container, first], "volumes": third} | {GRACE: first}},
        {"kind": "Kustomization", "patches": first, "configMapGenerator": second, "items": third},
        {"kind": "ConfigMap", "metadata": first, "data": second},
        {"services": {"tgis": compose, "other": third}},
    ]
    file.write_text(yaml.safe_dump_all(documents))

    with contextlib.suppress(UsageError):
        list(examine_all(read_containers([read_settings_file(str(file))])))


# -- the command


def run(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [TGIS, "migrate", *arguments], input=stdin, capture_output=True, text=True, timeout=20, check=False
    )


def test_the_exit_code_shows_whether_everything_works():
    works, fails, wrong = run(str(ORIGINAL)), run("-", stdin="MAX_BATCH_SIZE=x\n"), run("/nowhere")

    assert [works.returncode, fails.returncode, wrong.returncode] == [0, 1, 2]
    assert wrong.stderr == "tgis: /nowhere cannot be read: No such file or directory.\n"
    assert works.stdout.endswith("This works with the new image if it can serve the model.\n")
    assert fails.stdout.splitlines()[1].startswith("1  refused  MAX_BATCH_SIZE=x  MAX_BATCH_SIZE is 'x', but must be")


@pytest.mark.parametrize(
    ("text", "end"),
    [
        ("DTYPE=float16", "if it can serve the model."),
        (
            "MAX_CONCURENT_REQUESTS=3\nPREFIX_STORE_PATH=/p\nDTYPE=float16",
            "if it can serve the model, except for what is `not there yet` and `unknown`.",
        ),
    ],
)
def test_the_conclusion_names_settings_without_effect(examine, text: str, end: str):
    (report,) = examine(text)

    assert conclude(report) == f"This works with the new image {end}"


def test_json_has_settings_and_advice():
    (report,) = json.loads(run("--json", "-", stdin="NUM_GPUS=2\n").stdout)

    assert report == {
        "file": "stdin",
        "container": "variables",
        "line": 1,
        "image": "",
        "settings": [
            {
                "name": "NUM_GPUS",
                "value": "2",
                "line": 1,
                "verdict": "renamed",
                "now": "Works; the newer name is --num-shard.",
                "todo": "",
            }
        ],
        "advice": [],
        "works": True,
    }


# The model


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("google/flan-t5-xl", "an encoder-decoder model"),
        ("bigscience/mt0-xxl", "an encoder-decoder model"),
        ("/models/dbrx-instruct", "a mixture of experts of another kind"),
        ("TheBloke/Llama-2-7B-GPTQ", "quantized"),
    ],
)
def test_a_model_of_a_family_that_is_not_served_is_known_by_its_name(examine, name: str, what: str):
    (report,) = examine(f"docker run -e MODEL_NAME={name} -e DTYPE=float16 text-gen-server\n")

    finding = next(finding for finding in report.findings if finding.name == "MODEL_NAME")
    assert (finding.verdict, finding.now) == (
        "refused",
        f"Judging by its name, this model is {what}, which no engine serves.",
    )
    assert report.will_fail


@pytest.mark.parametrize(
    "name",
    [
        "meta-llama/Llama-2-7b-hf",
        "tiiuae/Falcon3-7B-Instruct",
        "mistralai/Mistral-7B-v0.1",
        "google/gemma-2-9b-it",
        "ibm-granite/granite-3.3-8b-instruct",
        "ibm-granite/granite-8b-code-instruct",
        "bigscience/bloom-560m",
        "EleutherAI/pythia-1.4b",
        "Qwen/Qwen2.5-7B-Instruct",
        "Qwen/Qwen3-8B",
        "microsoft/Phi-3-mini-4k-instruct",
        "openai-community/gpt2",
        "/models/opt",
        "tiiuae/falcon-40b",
        "bigcode/starcoder",
        "mistralai/Mixtral-8x7B-v0.1",
        "google/gemma-3-12b-it",
        "$(MODEL)",
    ],
)
def test_a_name_of_another_model_says_nothing_about_its_family(name: str):
    assert explain_unserved(name, lambda _: None) == ""


def test_a_model_in_the_cache_is_judged_by_its_own_config(tmp_path: Path):
    (tmp_path / "config.json").write_text('{"model_type": "mamba", "architectures": ["MambaForCausalLM"]}')

    reason = explain_unserved("org/llama", lambda _: tmp_path)

    assert reason.startswith(f"{tmp_path}/config.json: architecture MambaForCausalLM has no native engine")
