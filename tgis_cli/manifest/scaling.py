"""Objects that accompany the pods, the same for all targets: autoscaling, disruptions, monitoring."""

from __future__ import annotations

from collections.abc import Iterator

from tgis_cli.manifest.explained import Explained, Object
from tgis_cli.manifest.objects import make_object
from tgis_cli.manifest.wanted import PROMETHEUS, Wanted
from tgis_cli.manifest.workload import Workload

QUEUED_PER_POD = 4  # sequences; fewer may be a peak that passes within a few steps
SCRAPE_S = 15
SCALE_DOWN_S = 300  # a peak may return within that time, and another pod would have to load the model first
METRIC = "tgi_queue_size"
# What follows the name of the set and a hyphen in the name of a pod. A long name leaves part of the revision's hash, or
# nothing of it.
POD_ENDINGS = {"StatefulSet": "[0-9]+", "Deployment": "[a-z0-9]*-?[a-z0-9]{5}"}

BEHAVIOR = {
    "scaleUp": {"stabilizationWindowSeconds": 30, "policies": [{"type": "Pods", "value": 1, "periodSeconds": 60}]},
    "scaleDown": {"stabilizationWindowSeconds": SCALE_DOWN_S},
}


def make_disruption_budget(workload: Workload) -> Explained:
    budget = make_object(
        workload,
        "policy/v1",
        "PodDisruptionBudget",
        {
            "spec": {
                "maxUnavailable": 1,
                "unhealthyPodEvictionPolicy": "AlwaysAllow",
                "selector": {"matchLabels": workload.selector},
            }
        },
    )
    return Explained(budget, "Node drains evict one pod at a time. A pod that is not ready never blocks a drain.")


def make_autoscaler(workload: Workload, kind: str, name: str) -> Explained:
    """
    Args:
        kind: the kind of the object that is scaled.
        name: its name.
    """
    makers = {"hpa": make_horizontal_autoscaler, "keda": make_scaled_object}
    return makers[str(workload.wanted.autoscale)](workload, {"apiVersion": "apps/v1", "kind": kind, "name": name})


def explain_threshold() -> str:
    return (
        f"Sequences that wait because no slot or no memory is free. If there are more than {QUEUED_PER_POD} per pod, "
        "other than for a short peak, another pod is needed."
    )


def make_horizontal_autoscaler(workload: Workload, target_ref: Object) -> Explained:
    metric = {"metric": {"name": METRIC}, "target": {"type": "AverageValue", "averageValue": str(QUEUED_PER_POD)}}
    spec = {
        "scaleTargetRef": target_ref,
        "minReplicas": workload.wanted.replicas,
        "maxReplicas": workload.most_replicas,
        "metrics": [Explained({"type": "Pods", "pods": metric}, explain_threshold())],
        "behavior": explain_behavior(),
    }
    autoscaler = make_object(workload, "autoscaling/v2", "HorizontalPodAutoscaler", {"spec": spec})
    return Explained(autoscaler, f"An adapter such as prometheus-adapter must expose {METRIC} as a pod metric.")


def explain_behavior() -> Explained:
    return Explained(
        BEHAVIOR,
        f"A new pod must load the model first, so pods come one by one, and stay for {SCALE_DOWN_S} s after a peak.",
    )


def make_scaled_object(workload: Workload, target_ref: Object) -> Explained:
    pods = f"{target_ref['name']}-{POD_ENDINGS[target_ref['kind']]}"
    trigger = {
        "type": "prometheus",
        "metadata": {
            "serverAddress": Explained(
                workload.wanted.prometheus or PROMETHEUS, "The address of the cluster's Prometheus (--prometheus)."
            ),
            "query": f'sum({METRIC}{{namespace="{workload.wanted.namespace}",pod=~"{pods}"}})',
            "threshold": Explained(str(QUEUED_PER_POD), explain_threshold()),
        },
    }
    spec = {
        "scaleTargetRef": target_ref,
        "minReplicaCount": workload.wanted.replicas,
        "maxReplicaCount": workload.most_replicas,
        "pollingInterval": SCRAPE_S,
        "advanced": {"horizontalPodAutoscalerConfig": {"behavior": explain_behavior()}},
        "triggers": [
            Explained(
                trigger,
                "If Prometheus requires a token, as OpenShift's does, add `authModes: bearer` to the metadata, and an "
                "authenticationRef to a TriggerAuthentication with the token.",
            )
        ],
    }
    scaled = make_object(workload, "keda.sh/v1alpha1", "ScaledObject", {"spec": spec})
    return Explained(scaled, "KEDA scales by the length of the queues of all pods together.")


def make_pod_monitor(workload: Workload) -> Explained:
    endpoint: Object = {"port": "http", "path": "/metrics", "interval": f"{SCRAPE_S}s"}
    if workload.http_tls == "server":
        endpoint |= {
            "scheme": "https",
            "tlsConfig": Explained(
                {"insecureSkipVerify": True}, "Pods are scraped by IP address, which certificates do not contain."
            ),
        }
    spec = {"selector": {"matchLabels": workload.selector}, "podMetricsEndpoints": [endpoint]}
    return Explained(
        make_object(workload, "monitoring.coreos.com/v1", "PodMonitor", {"spec": spec}),
        "For the Prometheus operator.",
    )


def find_missing_parts(wanted: Wanted) -> Iterator[str]:
    """What the autoscaler needs besides the objects of the manifest."""
    if wanted.autoscale and not wanted.monitor:
        yield (
            f"--autoscale {wanted.autoscale} needs the metric {METRIC} in Prometheus: add --monitor, or let Prometheus "
            "scrape the port http of the pods another way."
        )
