"""The pod of a workload: its containers, volumes, probes and security. Every target uses the same container."""

from __future__ import annotations

from typing import Any

from tgis_cli.manifest.explained import Explained, Object, without_none
from tgis_cli.manifest.model_source import BUNDLES, MODELS
from tgis_cli.manifest.resources import round_up, write_quantity
from tgis_cli.manifest.timing import PROBE_S
from tgis_cli.manifest.wanted import WRITABLE
from tgis_cli.manifest.workload import CLIENT_CA_DIR, ENDPOINT_VARIABLE, TLS_DIR, Workload
from tgis_server.words.sizes import GIB, MIB

DEFAULT_TERMINATION_LOG = "/dev/termination-log"
GPU = "nvidia.com/gpu"
TMP_BYTES = 256 * MIB  # a run directory takes about 100 KiB, and downloads keep their state there
DASHBOARD = {"opendatahub.io/kserve-runtime": "tgis"}  # what Open Data Hub's dashboards look for
TOKEN_KEY = "HF_TOKEN"  # noqa: S105  the key in the Secret, not a token
LIVE_S, LIVE_TIMEOUT_S, READY_TIMEOUT_S = 10, 5, 2

RESTRICTED = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}


def make_pod_template(workload: Workload) -> Object:
    return {
        "metadata": {
            "labels": {**workload.labels, **DASHBOARD},
            "annotations": {**DASHBOARD},
        },
        "spec": make_pod_spec(workload),
    }


def make_pod_spec(workload: Workload) -> Object:
    return without_none(
        {
            **make_pod_settings(workload),
            "tolerations": make_tolerations(workload),
            "initContainers": [make_fetcher(workload)] if workload.fetches else None,
            "containers": [make_container(workload, "server", "grpc")],
            "volumes": make_volumes(workload),
        }
    )


def make_pod_settings(workload: Workload) -> Object:
    """The fields of a pod other than its containers."""
    return without_none(
        {
            "serviceAccountName": workload.name,
            "automountServiceAccountToken": False,
            "enableServiceLinks": Explained(
                False, "A Service named `grpc` would otherwise set GRPC_PORT=tcp://…, which the launcher reads."
            ),
            "securityContext": make_pod_security(workload),
            "terminationGracePeriodSeconds": Explained(workload.timing.grace_s, f"{workload.timing.grace_why}."),
            "topologySpreadConstraints": make_spread(workload),
        }
    )


def make_pod_security(workload: Workload) -> Explained:
    group = workload.wanted.fs_group
    security: Object = {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
    why = "No user id: the image's own is 2000, and OpenShift assigns one; any id works."
    if group is not None:
        security |= {"fsGroup": group, "fsGroupChangePolicy": "OnRootMismatch"}
    elif workload.fetches and workload.placement.source.kind == "hub":
        why += " --fs-group makes volumes writable where root owns them, as on most clusters but OpenShift."
    return Explained(security, why)


def make_spread(workload: Workload) -> list[Object] | None:
    if workload.most_replicas == 1:
        return None
    return [
        {
            "maxSkew": 1,
            "topologyKey": "kubernetes.io/hostname",
            "whenUnsatisfiable": "ScheduleAnyway",
            "labelSelector": {"matchLabels": workload.selector},
        }
    ]


def make_tolerations(workload: Workload) -> list[Object] | None:
    if not workload.resources.num_gpus:
        return None
    return [{"key": GPU, "operator": "Exists", "effect": "NoSchedule"}]


def make_container(workload: Workload, name: str, grpc_port: str) -> Object:
    """The server.

    Args:
        grpc_port: the name of its gRPC port.
    """
    return without_none(
        {
            "name": name,
            "image": workload.image,
            "args": list(workload.args),
            "env": make_env(workload),
            "ports": [
                {"name": grpc_port, "containerPort": workload.grpc_port},
                {"name": "http", "containerPort": workload.http_port},
            ],
            "resources": make_resources(workload),
            "startupProbe": Explained(
                make_probe(workload, "startup", failureThreshold=workload.timing.startup_failures),
                f"Reading {workload.timing.startup_why}.",
            ),
            "livenessProbe": Explained(
                make_probe(workload, "live", periodSeconds=LIVE_S, timeoutSeconds=LIVE_TIMEOUT_S, failureThreshold=3),
                "Answered from memory, however busy the server is; fails only when nothing but a restart helps.",
            ),
            "readinessProbe": make_probe(workload, "ready", timeoutSeconds=READY_TIMEOUT_S),
            "terminationMessagePath": None
            if workload.termination_log == DEFAULT_TERMINATION_LOG
            else workload.termination_log,
            "terminationMessagePolicy": "FallbackToLogsOnError",
            "securityContext": dict(RESTRICTED),
            "volumeMounts": make_mounts(workload),
        }
    )


def make_env(workload: Workload) -> list[Any] | None:
    cache = workload.placement.cache
    env: list[Any] = [{"name": "HF_HUB_CACHE", "value": cache}] if cache else []
    secret = f"{workload.name}-options"
    env += [
        Explained(
            {"name": option.env, "valueFrom": {"secretKeyRef": {"name": secret, "key": option.env}}},
            f"Has credentials: kubectl create secret generic {secret} --from-literal={option.env}=…",
        )
        for option in workload.secret_options
    ]
    return env or None


def make_resources(workload: Workload) -> Object:
    """All memory is reserved. CPUs are limited only where they compute, because the launcher counts them there."""
    wanted = workload.resources
    memory = write_quantity(wanted.memory_bytes)
    if not wanted.num_gpus:
        both = {"cpu": str(wanted.cpus), "memory": memory}
        return {
            "requests": Explained(both, f"Memory: {wanted.memory_why}. CPUs: {wanted.cpus_why}."),
            "limits": Explained(
                dict(both), "Equal: the launcher divides the limits, and the pod is among the last to be evicted."
            ),
        }
    gpus = {GPU: str(wanted.num_gpus)}
    return {
        "requests": Explained(
            {"cpu": str(wanted.cpus), "memory": memory, **gpus},
            f"Memory: {wanted.memory_why}. CPUs: {wanted.cpus_why}.",
        ),
        "limits": {"memory": memory, GPU: Explained(str(wanted.num_gpus), f"GPUs, {wanted.gpus_why}.")},
    }


def make_probe(workload: Workload, probe: str, **times: int) -> Object:
    """Over HTTP, which costs nothing; only a port that requires client certificates is probed by a command."""
    timing = {"periodSeconds": PROBE_S, **times}
    if workload.http_tls == "mutual":
        url = f"https://127.0.0.1:{workload.http_port}"
        identity = ["--cert", f"{TLS_DIR}/tls.crt", "--key", f"{TLS_DIR}/tls.key"]
        command = ["tgis", "health", "--probe", probe, "--url", url, *identity]
        asking = Explained(
            {"command": command},
            "The kubelet has no certificate. The clients' CA must have signed the server's own, also for clientAuth.",
        )
        return {"exec": asking, **timing, "timeoutSeconds": LIVE_TIMEOUT_S}
    scheme = {"scheme": "HTTPS"} if workload.http_tls == "server" else {}
    return {"httpGet": {"path": f"/health/{probe}", "port": "http", **scheme}, **timing}


def make_mounts(workload: Workload) -> list[Object]:
    mounts: list[Object] = [{"name": "tmp", "mountPath": str(WRITABLE)}]
    if has_model_volume(workload):
        mounts.append({"name": "model", "mountPath": MODELS, "readOnly": True})
    if workload.resources.shm_bytes:
        mounts.append({"name": "shm", "mountPath": "/dev/shm"})  # noqa: S108  in the container
    if workload.wanted.tls_secret:
        mounts.append({"name": "tls", "mountPath": TLS_DIR, "readOnly": True})
    if workload.wanted.client_ca:
        mounts.append({"name": "client-ca", "mountPath": CLIENT_CA_DIR, "readOnly": True})
    return mounts


def has_model_volume(workload: Workload) -> bool:
    return workload.placement.source.kind != "image" and not workload.wanted.is_kserve


def make_volumes(workload: Workload) -> list[Any]:
    wanted = workload.wanted
    room = {} if workload.has_log_file else {"sizeLimit": write_quantity(TMP_BYTES)}
    volumes: list[Any] = [{"name": "tmp", "emptyDir": room}]
    if has_model_volume(workload):
        volumes += make_model_volumes(workload)
    if shm := workload.resources.shm_bytes:
        volumes.append(
            Explained(
                {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": write_quantity(shm)}},
                "Shared memory for NCCL, between shards; the default is 64 MiB. It counts as memory of the pod.",
            )
        )
    if wanted.tls_secret:
        volumes.append(
            Explained(
                {"name": "tls", "secret": {"secretName": wanted.tls_secret}},
                "tls.crt and tls.key; when they are renewed, the server reads them again by itself.",
            )
        )
    if wanted.client_ca:
        volumes.append({"name": "client-ca", "configMap": {"name": wanted.client_ca}})
    return volumes


def make_model_volumes(workload: Workload) -> list[Any]:
    source = workload.placement.source
    match source.kind:
        case "pvc":
            claim = {"name": "model", "persistentVolumeClaim": {"claimName": source.claim, "readOnly": True}}
            return [Explained(claim, "Pods on several nodes need the access mode ReadOnlyMany or ReadWriteMany.")]
        case "hub" if source.claim:
            claim = {"name": "model", "persistentVolumeClaim": {"claimName": source.claim}}
            return [Explained(claim, "Pods on several nodes need the access mode ReadWriteMany.")]
        case "bundle":
            size = write_quantity(model_room(workload))
            volume = {"name": "model", "emptyDir": {"sizeLimit": size}}
            return [
                Explained(volume, f"The unpacked model: each pod takes up to {size} of its node's disk."),
                {"name": "bundle", "persistentVolumeClaim": {"claimName": source.claim, "readOnly": True}},
            ]
        case _:
            return []  # the claim template of the StatefulSet


def model_room(workload: Workload) -> int:
    """The size of a volume for the model, in bytes: whole GiB, with a tenth to spare."""
    return round_up(workload.num_bytes + workload.num_bytes // 10, GIB)


def make_fetcher(workload: Workload) -> Explained:
    """The init container that fetches the model. It skips what is already complete, so restarts cost little."""
    placement, source = workload.placement, workload.placement.source
    mounts: list[Object] = [{"name": "model", "mountPath": MODELS}, {"name": "tmp", "mountPath": str(WRITABLE)}]
    if source.kind == "bundle":
        args = ["unbundle", f"{BUNDLES}/{source.path}", f"--name={placement.model}"]
        mounts.append({"name": "bundle", "mountPath": BUNDLES, "readOnly": True})
        env: list[Any] = [{"name": "HF_HUB_CACHE", "value": MODELS}]
    else:
        args = ["download-weights", placement.model]
        args += [f"--revision={placement.revision}"] if placement.revision else []
        env = make_download_env(workload)
    container = {
        "name": "fetch",
        "image": workload.image,
        "args": args,
        "env": env,
        "resources": make_fetcher_resources(workload),
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "securityContext": dict(RESTRICTED),
        "volumeMounts": mounts,
    }
    what = "Unpacks the bundle" if source.kind == "bundle" else "Downloads the model unless the volume has it"
    proxy = (
        ""
        if source.kind == "bundle"
        else " Behind a proxy, set HTTPS_PROXY here, and add its port to the NetworkPolicy."
    )
    return Explained(container, f"{what}, before the server starts.{proxy}")


def make_fetcher_resources(workload: Workload) -> Explained:
    """The server's, without its GPUs."""
    amounts = {"cpu": str(workload.resources.cpus), "memory": write_quantity(workload.resources.memory_bytes)}
    limits = amounts if not workload.resources.num_gpus else {"memory": amounts["memory"]}
    is_on_node = workload.placement.source.kind == "bundle"
    disk = {"ephemeral-storage": write_quantity(model_room(workload))} if is_on_node else {}
    return Explained(
        {"requests": amounts | disk, "limits": dict(limits)},
        "As much as the server, which starts only after this: a pod reserves the larger amount, not the sum.",
    )


def make_download_env(workload: Workload) -> list[Any]:
    env: list[Any] = [
        {"name": "HF_HUB_CACHE", "value": MODELS},
        {"name": "HF_HOME", "value": f"{WRITABLE}/huggingface"},
        Explained({"name": "HF_HUB_OFFLINE", "value": "0"}, "Some images set it to 1, but this container downloads."),
    ]
    if workload.hub_endpoint:
        env.append({"name": ENDPOINT_VARIABLE, "value": workload.hub_endpoint})
    if secret := workload.wanted.hf_token_secret:
        env.append({"name": TOKEN_KEY, "valueFrom": {"secretKeyRef": {"name": secret, "key": TOKEN_KEY}}})
    return env
