"""The objects of each target, as a cluster would judge them, and what they say of the model and its pods."""

from __future__ import annotations

import copy
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from cluster_objects import InvalidObject, Object, check_object, check_together
from in_process import run_in_process
from manifests import MODEL, make, objects_of, pod_of, server_of, write_model
from tgis_cli.manifest import to_yaml
from tgis_cli.manifest.explained import strip
from tgis_cli.manifest.names import MAX_NAME
from tgis_cli.model_files import DEMO_MODEL_DIR

VARIANTS: dict[str, dict[str, Any]] = {
    "demo": {"model": None},
    "downloaded by each pod": {"replicas": 2, "hf_token_secret": "hf"},
    "downloaded into a claim": {"model_source": "hub:models", "fs_group": 2000},
    "in a claim": {"model_source": "pvc:models", "namespace": "llm", "autoscale": "hpa", "replicas": 2},
    "from a bundle": {"model_source": "bundle:archive/llama.tar", "cpu": "64GiB"},
    "in the image": {"model_source": "image", "image": "registry.example.com/tgis@sha256:" + "0" * 64},
    "two gpus": {"gpu": "12GiB", "autoscale": "keda", "namespace": "llm", "max_replicas": 8, "monitor": True},
    "tls": {"tls_secret": "tls", "client_ca": "ca", "flags": {"http_tls": "server"}, "monitor": True},
    "mutual tls": {"tls_secret": "tls", "client_ca": "ca", "flags": {"http_tls": "mutual"}},
    "secret option": {"flags": {"otlp_endpoint": "http://me:secret@collector:4317"}},
    "kserve": {"target": "kserve", "gpu": "L4", "hf_token_secret": "hf", "replicas": 2, "monitor": True},
    "kserve in a claim": {
        "target": "kserve",
        "model_source": "pvc:models/llama",
        "autoscale": "keda",
        "namespace": "llm",
    },
    "kserve demo": {"target": "kserve", "model": None, "autoscale": "hpa"},
}


def names_of(args: list[str]) -> list[str]:
    return [arg.partition("=")[0] for arg in args]


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_cluster_accepts_every_object(variant: str, environ: dict[str, str]) -> None:
    objects = [strip(each) for each in make(environ, **VARIANTS[variant]).objects]

    for each in objects:
        check_object(with_claims_as_volumes(each))
    check_together([each for each in objects if each["kind"] not in ("ScaledObject", "HorizontalPodAutoscaler")])


def with_claims_as_volumes(obj: Object) -> Object:
    """A StatefulSet whose pods have the volumes that the cluster adds to them."""
    obj = copy.deepcopy(obj)
    for claim in obj["spec"].get("volumeClaimTemplates", []) if obj["kind"] == "StatefulSet" else []:
        obj["spec"]["template"]["spec"]["volumes"].append({"name": claim["metadata"]["name"], "emptyDir": {}})
    return obj


def misspell_probe(objects: dict[str, Object]) -> Object:
    server = objects["Deployment"]["spec"]["template"]["spec"]["containers"][0]
    server["livenesProbe"] = server.pop("livenessProbe")
    return objects["Deployment"]


def break_port(objects: dict[str, Object]) -> Object:
    objects["Deployment"]["spec"]["template"]["spec"]["containers"][0]["ports"][1]["name"] = "metrics"
    return objects["Deployment"]


def break_trigger(objects: dict[str, Object]) -> Object:
    objects["ScaledObject"]["spec"]["triggers"][0]["metadata"] = "tgi_queue_size"
    return objects["ScaledObject"]


@pytest.mark.parametrize("damage", [misspell_probe, break_port, break_trigger])
def test_a_broken_field_is_noticed(damage: Callable[[dict[str, Object]], Object], environ: dict[str, str]) -> None:
    broken = damage(objects_of(make(environ, model_source="image", autoscale="keda", namespace="llm")))

    with pytest.raises(InvalidObject):
        check_object(broken)


@pytest.mark.parametrize("variant", [name for name in VARIANTS if not name.startswith("kserve")])
def test_the_launcher_accepts_the_arguments(variant: str, environ: dict[str, str]) -> None:
    args = server_of(make(environ, **VARIANTS[variant]))["args"]
    placed = [arg for arg in args[1:] if arg.startswith("--") and not arg.startswith("--revision")]

    shown = run_in_process("config", "show", *placed, environ={})

    assert args[0] == "launch"
    assert shown.returncode in (0, 4), shown.stderr  # 4: this machine has no GPUs


# The model


@pytest.mark.parametrize(
    ("source", "argument", "cache"),
    [
        (None, MODEL, "/models"),
        ("hub:models", MODEL, "/models"),
        ("pvc:models", MODEL, "/models"),
        ("pvc:models/transformers_cache", MODEL, "/models/transformers_cache"),
        ("bundle:archive/llama.tar", MODEL, "/models"),
        ("image", "/models/Llama-3.1-8B", None),
    ],
)
def test_the_launcher_looks_where_the_source_puts_the_model(
    source: str | None, argument: str, cache: str | None, environ: dict[str, str]
) -> None:
    server = server_of(make(environ, flags={"revision": "v1"}, model_source=source))

    assert server["args"][1] == argument
    assert ("--revision=v1" in server["args"]) is (cache is not None)
    assert {each["name"]: each["value"] for each in server.get("env", [])}.get("HF_HUB_CACHE") == cache


def test_a_directory_of_this_machine_has_the_same_name_in_a_claim(tmp_path: Path) -> None:
    model = write_model(tmp_path / "my-llama")

    assert server_of(make({}, str(model), model_source="pvc:models"))["args"][1] == "/models/my-llama"
    assert server_of(make({}, str(model), model_source="pvc:models/llama/8b"))["args"][1] == "/models/llama/8b"


def test_a_name_in_the_cache_is_not_a_directory_that_happens_to_have_it(
    environ: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / MODEL).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)

    assert server_of(make(environ, model_source="hub:models"))["args"][1] == MODEL


def test_pytorch_weights_must_be_converted_before_they_are_mounted(tmp_path: Path) -> None:
    model = tmp_path / "my-demo"
    shutil.copytree(DEMO_MODEL_DIR, model)
    torch.save(load_file(model / "model.safetensors"), model / "pytorch_model.bin")
    (model / "model.safetensors").unlink()

    made = make({}, str(model), model_source="pvc:models")

    assert server_of(made)["args"][1] == "/models/my-demo"
    assert any("convert them with `tgis convert-to-safetensors`" in warning for warning in made.warnings)


def test_a_bundled_directory_gets_a_name_in_the_cache(tmp_path: Path) -> None:
    made = make({}, str(write_model(tmp_path / "my-llama")), model_source="bundle:archive/a.tar")

    [fetch] = pod_of(made)["initContainers"]
    assert fetch["args"] == ["unbundle", "/bundle/a.tar", "--name=local/my-llama"]
    assert server_of(made)["args"][1] == "local/my-llama"


def test_downloads_get_the_token_from_a_secret_and_the_revision_of_the_launch(environ: dict[str, str]) -> None:
    made = make(environ | {"HF_ENDPOINT": "https://hub.example.com"}, flags={"revision": "v1"}, hf_token_secret="hf")

    [fetch] = pod_of(made)["initContainers"]
    assert fetch["args"] == ["download-weights", MODEL, "--revision=v1"]
    env = {each["name"]: each for each in fetch["env"]}
    assert env["HF_TOKEN"]["valueFrom"] == {"secretKeyRef": {"name": "hf", "key": "HF_TOKEN"}}
    assert env["HF_ENDPOINT"]["value"] == "https://hub.example.com"
    assert env["HF_HUB_OFFLINE"]["value"] == "0"


def test_pods_that_download_keep_their_copy(environ: dict[str, str]) -> None:
    own, shared = (objects_of(make(environ, replicas=2, model_source=source)) for source in (None, "hub:models"))

    [claim] = own["StatefulSet"]["spec"]["volumeClaimTemplates"]
    assert claim["spec"]["resources"]["requests"] == {"storage": "17Gi"}
    assert own["StatefulSet"]["spec"]["serviceName"] == own["Service-pods"]["metadata"]["name"]
    assert "Deployment" in shared


def test_only_what_brings_the_model_may_write_to_it(environ: dict[str, str]) -> None:
    pod = pod_of(make(environ, model_source="hub:models"))

    writable = {
        container["name"]: [mount["name"] for mount in container["volumeMounts"] if not mount.get("readOnly")]
        for container in (*pod["initContainers"], *pod["containers"])
    }
    assert writable == {"fetch": ["model", "tmp"], "server": ["tmp"]}


# The pod


def test_given_options_become_arguments_and_those_of_a_cluster_are_added(environ: dict[str, str]) -> None:
    flags = {"max_batch_size": "32", "prefix_cache": False, "default_include_stop_seqs": "false"}

    args = server_of(make(environ | {"LOG_LEVEL": "debug"}, flags=flags, gpu="H100"))["args"]

    assert args == [
        "launch",
        MODEL,
        "--device=cuda",
        "--no-prefix-cache",
        "--max-batch-size=32",
        "--max-connection-age=10",
        "--default-include-stop-seqs=false",
        "--drain-delay=15",
        "--log-level=debug",
    ]


def test_variables_of_an_image_that_restate_defaults_are_not_arguments(environ: dict[str, str]) -> None:
    inside = make(environ | {"PORT": "3000", "GRPC_PORT": "8033", "MAX_BATCH_SIZE": "7"})

    names = names_of(server_of(inside)["args"])
    assert "--max-batch-size" in names
    assert not {"--port", "--grpc-port"} & set(names)


def test_a_connection_age_that_the_environment_sets_to_its_default_is_kept(environ: dict[str, str]) -> None:
    made = make(environ | {"MAX_CONNECTION_AGE": "0"})

    assert "--max-connection-age" not in names_of(server_of(made)["args"])
    assert "reconnect" not in to_yaml(made.objects), "the Service is not said to rely on it"


def test_a_rehearsal_is_a_small_pod_that_downloads_nothing(environ: dict[str, str]) -> None:
    made = make(environ, flags={"rehearse": True, "num_shard": "2"}, gpu="H100")

    server = server_of(made)
    assert {"--rehearse", "--num-shard=2"} <= set(server["args"])
    assert MODEL not in server["args"]
    assert "initContainers" not in pod_of(made)
    assert server["resources"]["requests"] == {"cpu": "1", "memory": "768Mi"}
    assert any("The rehearsal downloads nothing" in warning for warning in made.warnings)


def test_a_rehearsal_with_a_source_brings_the_model(environ: dict[str, str]) -> None:
    made = make(environ, flags={"rehearse": True}, model_source="hub:models")

    assert server_of(made)["args"][1] == MODEL
    assert "initContainers" in pod_of(made)


@pytest.mark.parametrize(
    ("wanted", "is_warned"),
    [
        ({}, True),
        ({"model_source": "hub:models"}, True),
        ({"fs_group": 2000}, False),
        ({"model_source": "pvc:models"}, False),
        ({"target": "kserve"}, False),
    ],
)
def test_volumes_that_pods_must_write_call_for_a_group(
    wanted: dict[str, Any], is_warned: bool, environ: dict[str, str]
) -> None:
    assert any("--fs-group 2000" in warning for warning in make(environ, **wanted).warnings) is is_warned


@pytest.mark.parametrize(("target", "is_warned"), [("kserve", True), ("deployment", False)])
def test_kserve_must_be_told_of_a_mirror_by_other_means(target: str, is_warned: bool, environ: dict[str, str]) -> None:
    made = make(environ | {"HF_ENDPOINT": "https://hub.example.com"}, target=target)

    assert any("not told of HF_ENDPOINT" in warning for warning in made.warnings) is is_warned


@pytest.mark.parametrize(("log_file", "volume"), [(None, {"sizeLimit": "256Mi"}), ("/tmp/tgis.log", {})])
def test_a_log_file_may_grow(log_file: str | None, volume: Object, environ: dict[str, str]) -> None:
    volumes = pod_of(make(environ, flags={"log_file": log_file}))["volumes"]

    assert {"name": "tmp", "emptyDir": volume} in volumes


def test_secrets_are_not_printed(environ: dict[str, str]) -> None:
    made = make(environ, flags={"otlp_endpoint": "http://me:word@collector:4317"})

    assert "word" not in str(made.objects)
    assert "--otlp-endpoint" not in names_of(server_of(made)["args"])
    assert {"name": "llama-3-1-8b-options", "key": "OTLP_ENDPOINT"} in [
        each.get("valueFrom", {}).get("secretKeyRef") for each in server_of(made)["env"]
    ]


def test_a_pod_has_time_to_finish_its_calls(environ: dict[str, str]) -> None:
    pod = pod_of(make(environ, flags={"drain_timeout": "300", "drain_delay": "5"}))

    assert pod["terminationGracePeriodSeconds"] == 5 + 300 + 10 + 10
    assert {"--drain-delay=5", "--drain-timeout=300", "--max-connection-age=3"} <= set(pod["containers"][0]["args"])


def test_without_a_drain_delay_connections_are_not_moved(environ: dict[str, str]) -> None:
    args = server_of(make(environ, flags={"drain_delay": "0"}))["args"]

    assert "--max-connection-age" not in names_of(args)


def test_a_start_may_take_as_long_as_a_slow_disk_and_ten_minutes(environ: dict[str, str]) -> None:
    startup = server_of(make(environ))["startupProbe"]

    assert startup["failureThreshold"] * startup["periodSeconds"] == 765  # 16.06 GB at 100 MB/s, and 600 s
    assert startup["httpGet"] == {"path": "/health/startup", "port": "http"}


def test_a_deployment_waits_for_the_download_before_it_reports_failure(environ: dict[str, str]) -> None:
    downloading, not_downloading = (
        objects_of(make(environ, model_source=source))["Deployment"]["spec"]["progressDeadlineSeconds"]
        for source in ("hub:models", "pvc:models")
    )

    assert (downloading, not_downloading) == (600 + 765 + 643, 600 + 765)


def test_a_start_that_hangs_is_ended_by_the_launcher_and_not_by_the_probe(environ: dict[str, str]) -> None:
    startup = server_of(make(environ, flags={"startup_timeout": "1000"}))["startupProbe"]

    assert startup["failureThreshold"] * startup["periodSeconds"] > 2000


def test_probes_use_the_tls_of_their_port(environ: dict[str, str]) -> None:
    probes = {
        tls: server_of(make(environ, flags={"http_tls": tls}, tls_secret="tls", client_ca="ca"))["livenessProbe"]
        for tls in ("off", "server", "mutual")
    }

    assert "scheme" not in probes["off"]["httpGet"]
    assert probes["server"]["httpGet"]["scheme"] == "HTTPS"
    assert probes["mutual"]["exec"]["command"][:4] == ["tgis", "health", "--probe", "live"]


def test_pods_meet_the_restricted_profile_with_any_user_id(environ: dict[str, str]) -> None:
    pod = pod_of(make(environ))

    assert pod["securityContext"] == {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
    for container in (*pod["initContainers"], *pod["containers"]):
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
    assert (pod["automountServiceAccountToken"], pod["enableServiceLinks"]) == (False, False)


@pytest.mark.parametrize("several", [{"replicas": 2}, {"autoscale": "hpa"}])
@pytest.mark.parametrize(("target", "set_of_pods"), [("deployment", "Deployment"), ("kserve", "InferenceService")])
def test_several_replicas_spread_over_nodes_and_leave_them_one_by_one(
    several: dict[str, Any], target: str, set_of_pods: str, environ: dict[str, str]
) -> None:
    one, more = (objects_of(make(environ, model_source="image", target=target, **wanted)) for wanted in ({}, several))

    assert "PodDisruptionBudget" not in one
    budget = more["PodDisruptionBudget"]["spec"]
    assert (budget["maxUnavailable"], budget["unhealthyPodEvictionPolicy"]) == (1, "AlwaysAllow")
    spread = "'topologyKey': 'kubernetes.io/hostname'"
    assert [spread in str(each[set_of_pods]) for each in (one, more)] == [False, True]


# What belongs to it


def test_the_service_says_that_it_speaks_http2(environ: dict[str, str]) -> None:
    plain, tls = (objects_of(make(environ, tls_secret=secret))["Service"]["spec"] for secret in (None, "tls"))

    assert [(each["name"], each["port"], each.get("appProtocol")) for each in plain["ports"]] == [
        ("grpc", 8033, "kubernetes.io/h2c"),
        ("http", 3000, None),
    ]
    assert tls["ports"][0]["appProtocol"] == "https"


@pytest.mark.parametrize(
    ("wanted", "has_headless"),
    [
        ({"model_source": "image"}, False),
        ({"model_source": "image", "replicas": 2}, True),
        ({"model_source": "image", "autoscale": "hpa"}, True),
        ({"model_source": "hub"}, True),  # a StatefulSet needs one
    ],
)
def test_clients_use_a_service_with_an_address_and_balance_over_a_headless_one(
    wanted: dict[str, Any], has_headless: bool, environ: dict[str, str]
) -> None:
    made = make(environ, tls_secret="tls", **wanted)

    services = {name: each["spec"] for name, each in objects_of(made).items() if each["kind"] == "Service"}
    assert "clusterIP" not in services.pop("Service")
    assert services.keys() == ({"Service-pods"} if has_headless else set())
    for spec in services.values():
        assert spec["clusterIP"] == "None"
        assert [(port["name"], port["appProtocol"]) for port in spec["ports"]] == [("grpc", "https")]


def test_names_are_resolved_at_any_address(environ: dict[str, str]) -> None:
    """NodeLocal DNSCache is no pod, so no selector matches it."""
    policy = objects_of(make(environ, model_source="hub:models"))["NetworkPolicy"]["spec"]

    assert all("to" not in rule for rule in policy["egress"])


@pytest.mark.parametrize(
    ("source", "flags", "ports"),
    [
        ("pvc:models", {}, set()),
        ("hub:models", {}, {53, 5353, 443}),
        ("pvc:models", {"otlp_endpoint": "http://collector:4318"}, {53, 5353, 4318}),
        ("pvc:models", {"otlp_endpoint": "collector"}, {53, 5353, 4317}),
    ],
)
def test_pods_may_connect_only_to_what_they_need(
    source: str, flags: dict[str, str], ports: set[int], environ: dict[str, str]
) -> None:
    policy = objects_of(make(environ, flags=flags, model_source=source))["NetworkPolicy"]["spec"]

    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert {port["port"] for rule in policy["egress"] for port in rule["ports"]} == ports


@pytest.mark.parametrize(
    ("autoscale", "kind", "bounds"),
    [
        ("hpa", "HorizontalPodAutoscaler", ("minReplicas", "maxReplicas")),
        ("keda", "ScaledObject", ("minReplicaCount", "maxReplicaCount")),
    ],
)
def test_an_autoscaler_scales_by_the_queue_and_alone_sets_the_number_of_pods(
    autoscale: str, kind: str, bounds: tuple[str, ...], environ: dict[str, str]
) -> None:
    objects = objects_of(
        make(environ, model_source="image", autoscale=autoscale, replicas=2, max_replicas=6, namespace="llm")
    )

    scaler = objects[kind]["spec"]
    assert scaler["scaleTargetRef"] == {"apiVersion": "apps/v1", "kind": "Deployment", "name": "llama-3-1-8b"}
    assert [scaler[name] for name in bounds] == [2, 6]
    assert "tgi_queue_size" in str(scaler)
    assert "replicas" not in objects["Deployment"]["spec"]


def test_keda_counts_only_the_pods_of_the_model(environ: dict[str, str]) -> None:
    scaled = objects_of(make(environ, autoscale="keda", namespace="llm", prometheus="https://thanos:9091"))[
        "ScaledObject"
    ]

    [trigger] = scaled["spec"]["triggers"]
    assert trigger["metadata"] == {
        "serverAddress": "https://thanos:9091",
        "query": 'sum(tgi_queue_size{namespace="llm",pod=~"llama-3-1-8b-[0-9]+"})',
        "threshold": "4",
    }


def name_pod(deployment: str, revision_hash: str) -> str:
    """As Kubernetes names a pod of a Deployment: cut before the random end."""
    return f"{deployment}-{revision_hash}-"[:58] + "x7k2p"


@given(
    name=st.from_regex(r"[a-z]([-a-z0-9]{0,45}[a-z0-9])?", fullmatch=True),
    other=st.from_regex(r"[a-z0-9]([-a-z0-9]{0,20}[a-z0-9])?", fullmatch=True),
    revision_hash=st.text("bcdf2456789", min_size=8, max_size=10),
    target=st.sampled_from(("deployment", "kserve")),
)
@example(name="a" * MAX_NAME, other="b", revision_hash="7d9f8b6c54", target="kserve")
@example(name="chat", other="large", revision_hash="7d9f8b6c54", target="deployment")
@settings(max_examples=30, deadline=None)
def test_keda_finds_the_pods_of_any_name_and_none_of_a_longer_one(
    name: str, other: str, revision_hash: str, target: str, environ: dict[str, str]
) -> None:
    made = make(environ, target=target, model_source="image", name=name, autoscale="keda", namespace="llm")

    scaled = objects_of(made)["ScaledObject"]["spec"]
    [pods] = re.findall(r'pod=~"(.*)"', scaled["triggers"][0]["metadata"]["query"])
    deployment = scaled["scaleTargetRef"]["name"]
    assert re.fullmatch(pods, name_pod(deployment, revision_hash))
    longer = f"{name}-{other}"
    if len(longer) <= MAX_NAME:
        assert not re.fullmatch(pods, name_pod(deployment.replace(name, longer, 1), revision_hash))


@pytest.mark.parametrize("monitor", [False, True])
def test_an_autoscaler_without_a_monitor_warns_that_the_metric_must_be_scraped(
    monitor: bool, environ: dict[str, str]
) -> None:
    made = make(environ, model_source="image", autoscale="hpa", monitor=monitor)

    assert any("--autoscale hpa needs the metric tgi_queue_size" in each for each in made.warnings) is not monitor


def test_the_dashboards_of_open_data_hub_find_the_pods(environ: dict[str, str]) -> None:
    template = objects_of(make(environ, model_source="image"))["Deployment"]["spec"]["template"]["metadata"]
    runtime = objects_of(make(environ, model_source="image", target="kserve"))["ServingRuntime"]["spec"]

    for pod in (template, runtime):
        assert pod["labels"]["opendatahub.io/kserve-runtime"] == "tgis"
        assert pod["annotations"]["opendatahub.io/kserve-runtime"] == "tgis"


# KServe


def test_kserve_runs_the_same_container_under_its_own_names(environ: dict[str, str]) -> None:
    plain = server_of(make(environ, gpu="L4"))
    [container] = objects_of(make(environ, gpu="L4", target="kserve"))["ServingRuntime"]["spec"]["containers"]

    assert (container["name"], container["ports"][0]["name"], container["args"][1]) == (
        "kserve-container",
        "h2c",
        "/mnt/models",
    )
    same = ("image", "resources", "startupProbe", "livenessProbe", "readinessProbe", "securityContext")
    assert [container[key] for key in same] == [plain[key] for key in same]


def test_kserves_port_says_whether_it_has_tls(environ: dict[str, str]) -> None:
    made = make(environ, target="kserve", model_source="image", tls_secret="tls")

    runtime = objects_of(made)["ServingRuntime"]
    assert runtime["spec"]["containers"][0]["ports"][0]["name"] == "tls-grpc"
    assert "h2c" not in to_yaml(made.objects)


@pytest.mark.parametrize(
    ("source", "uri"),
    [("hub", f"hf://{MODEL}:v1"), ("pvc:models/llama", "pvc://models/llama"), ("image", None)],
)
def test_kserve_brings_the_model_from_a_uri(source: str, uri: str | None, environ: dict[str, str]) -> None:
    service = objects_of(make(environ, flags={"revision": "v1"}, target="kserve", model_source=source))

    assert service["InferenceService"]["spec"]["predictor"]["model"].get("storageUri") == uri


def test_kserve_leaves_scaling_by_the_queue_to_the_autoscaler(environ: dict[str, str]) -> None:
    objects = objects_of(make(environ, target="kserve", autoscale="hpa"))

    annotations = objects["InferenceService"]["metadata"]["annotations"]
    assert annotations["serving.kserve.io/autoscalerClass"] == "external"
    assert objects["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]["name"] == "llama-3-1-8b-predictor"
