"""The plain Kubernetes objects: a Deployment or StatefulSet, and what belongs to it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from tgis_cli.manifest.explained import Explained, Object, without_none
from tgis_cli.manifest.objects import make_object
from tgis_cli.manifest.pod import make_pod_template, model_room
from tgis_cli.manifest.resources import write_quantity
from tgis_cli.manifest.scaling import make_autoscaler, make_disruption_budget, make_pod_monitor
from tgis_cli.manifest.workload import Workload

MONITORING = ("monitoring", "openshift-monitoring", "openshift-user-workload-monitoring")
DNS_PORTS = (53, 5353)  # the second is that of OpenShift's DNS pods, behind their Service
OTLP = "otlp"
HEADLESS = "-pods"  # added to the name of the Service
HEADLESS_CLIENTS = (
    "gRPC resolves a name at most every 30 s unless told otherwise, so clients of a headless Service find new pods too "
    "late: they need grpc.dns_min_time_between_resolutions_ms of at most 5000, or pods with --drain-delay 45."
)
DEFAULT_PORTS = {"http": 80, "https": 443, OTLP: 4317}


def make_kubernetes_objects(workload: Workload) -> Iterator[Explained]:
    """All objects, in the order in which they are applied."""
    yield make_service_account(workload)
    yield make_network_policy(workload)
    yield make_service(workload)
    if workload.most_replicas > 1 or workload.is_stateful:
        yield make_headless_service(workload)
    yield make_stateful_set(workload) if workload.is_stateful else make_deployment(workload)
    if workload.most_replicas > 1:
        yield make_disruption_budget(workload)
    if workload.wanted.autoscale:
        yield make_autoscaler(workload, "StatefulSet" if workload.is_stateful else "Deployment", workload.name)
    if workload.wanted.monitor:
        yield make_pod_monitor(workload)


def make_service_account(workload: Workload, secrets: tuple[str, ...] = ()) -> Explained:
    body: Object = {"automountServiceAccountToken": False}
    if secrets:
        body["secrets"] = [{"name": name} for name in secrets]
    account = make_object(workload, "v1", "ServiceAccount", body)
    return Explained(account, "The server never calls the Kubernetes API, so its pods get no token.")


def make_service(workload: Workload) -> Explained:
    http = {"name": "http", "port": workload.http_port, "targetPort": "http"}
    spec = {"selector": workload.selector, "ports": [make_grpc_port(workload), http]}
    why = "For clients: each new connection goes to a ready pod."
    if workload.timing.connection_age_s:
        why += (
            " --max-connection-age makes clients reconnect, so they leave a stopping pod before it refuses calls, and "
            "find new pods."
        )
    return Explained(make_object(workload, "v1", "Service", {"spec": spec}), why)


def make_headless_service(workload: Workload) -> Explained:
    spec = {"clusterIP": "None", "selector": workload.selector, "ports": [make_grpc_port(workload)]}
    service = make_object(workload, "v1", "Service", {"spec": spec}, HEADLESS)
    return Explained(
        service,
        "Headless: the name resolves to every ready pod, for clients that balance calls themselves "
        f"(dns:///{workload.name}{HEADLESS}:{workload.grpc_port} with round_robin). {HEADLESS_CLIENTS}",
    )


def make_grpc_port(workload: Workload) -> Object:
    protocol = "https" if workload.has_tls else "kubernetes.io/h2c"
    return {"name": "grpc", "port": workload.grpc_port, "targetPort": "grpc", "appProtocol": protocol}


def make_deployment(workload: Workload) -> Explained:
    surge = "One extra pod during an update, so that no call is lost while a new one loads."
    if workload.resources.num_gpus:
        surge += " It needs spare GPUs: in a cluster without any, swap the two numbers."
    spec = without_none(
        {
            "replicas": make_replicas(workload),
            "selector": {"matchLabels": workload.selector},
            "strategy": Explained(
                {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}, surge
            ),
            "progressDeadlineSeconds": Explained(workload.timing.progress_s, f"{workload.timing.progress_why}."),
            "template": make_pod_template(workload),
        }
    )
    return Explained(make_object(workload, "apps/v1", "Deployment", {"spec": spec}), describe(workload))


def make_stateful_set(workload: Workload) -> Explained:
    room = write_quantity(model_room(workload))
    spec = without_none(
        {
            "replicas": make_replicas(workload),
            "serviceName": workload.name + HEADLESS,
            "podManagementPolicy": Explained(
                "Parallel", "Pods do not depend on each other: all download at the same time."
            ),
            "selector": {"matchLabels": workload.selector},
            "template": make_pod_template(workload),
            "volumeClaimTemplates": [
                Explained(
                    {
                        "metadata": {"name": "model", "labels": workload.selector},
                        "spec": {
                            "accessModes": ["ReadWriteOnce"],
                            "resources": {"requests": {"storage": room}},
                        },
                    },
                    "Each pod keeps its own copy of the model, and finds it again after a restart. An update replaces "
                    "one pod after another; a single pod is gone meanwhile (not with --model-source hub:CLAIM).",
                )
            ],
        }
    )
    return Explained(make_object(workload, "apps/v1", "StatefulSet", {"spec": spec}), describe(workload))


def describe(workload: Workload) -> str:
    gpus = workload.resources.num_gpus
    where = "CPUs" if not gpus else "1 GPU per pod" if gpus == 1 else f"{gpus} GPUs per pod"
    return f"Serves {workload.title} on {where}."


def make_replicas(workload: Workload) -> int | None:
    """The number of pods; ``None`` if an autoscaler sets it, since applying the object again must not reset it."""
    return None if workload.wanted.autoscale else workload.wanted.replicas


def make_network_policy(workload: Workload) -> Explained:
    """Admits calls from the namespace, and scrapes by monitoring; lets out only what a pod needs."""
    spec = {
        "podSelector": {"matchLabels": workload.selector},
        "policyTypes": ["Ingress", "Egress"],
        "ingress": [
            Explained(
                {"from": [{"podSelector": {}}], "ports": [make_port(workload.grpc_port)]},
                "Calls, from pods in this namespace: add the namespaces of gateways and other clients.",
            ),
            Explained(
                {
                    "from": [
                        {"podSelector": {}},
                        {
                            "namespaceSelector": {
                                "matchExpressions": [
                                    {
                                        "key": "kubernetes.io/metadata.name",
                                        "operator": "In",
                                        "values": list(MONITORING),
                                    }
                                ]
                            }
                        },
                    ],
                    "ports": [make_port(workload.http_port)],
                },
                "Scrapes, from these namespaces: add that of your Prometheus. Probes come from the pod's node, which "
                "is always allowed.",
            ),
        ],
        "egress": make_egress(workload),
    }
    policy = make_object(workload, "networking.k8s.io/v1", "NetworkPolicy", {"spec": spec})
    return Explained(policy, "What may connect to the pods, and where they may connect to.")


def make_egress(workload: Workload) -> Any:
    targets = []
    if workload.placement.source.kind == "hub":
        targets.append((find_port(workload.hub_endpoint or "https://huggingface.co"), "The hub."))
    if workload.otlp_endpoint:
        targets.append((find_port(workload.otlp_endpoint), "The trace collector."))
    if not targets:
        return Explained([], "None: a server opens no connections.")
    dns = [make_port(port, protocol) for port in DNS_PORTS for protocol in ("UDP", "TCP")]
    return [
        Explained({"ports": dns}, "DNS, at any address: that of NodeLocal DNSCache is not a pod's."),
        *(Explained({"ports": [make_port(port)]}, why) for port, why in targets),
    ]


def find_port(url: str) -> int:
    """The port of a URL; a URL without a scheme is that of a trace collector."""
    parts = urlsplit(url if "://" in url else f"{OTLP}://{url}")
    return parts.port or DEFAULT_PORTS.get(parts.scheme, DEFAULT_PORTS[OTLP])


def make_port(port: int, protocol: str = "TCP") -> Object:
    return {"port": port, "protocol": protocol}
