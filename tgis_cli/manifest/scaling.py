"""Objects beside the pods, the same for all targets: autoscaling, disruptions, monitoring."""

from __future__ import annotations

from tgis_cli.manifest.explained import Explained, Object, without_none
from tgis_cli.manifest.workload import Workload

QUEUED_PER_POD = 4  # sequences; fewer are the passing peak of a few steps
SCRAPE_S = 15
SCALE_DOWN_S = 300  # the time in which a peak may return: another pod has to load the model first
METRIC = "tgi_queue_size"

BEHAVIOR = {
    "scaleUp": {"stabilizationWindowSeconds": 30, "policies": [{"type": "Pods", "value": 1, "periodSeconds": 60}]},
    "scaleDown": {"stabilizationWindowSeconds": SCALE_DOWN_S},
}


def make_named(workload: Workload, api_version: str, kind: str, body: Object) -> Object:
    metadata = without_none({"name": workload.name, "namespace": workload.wanted.namespace, "labels": workload.labels})
    return {"apiVersion": api_version, "kind": kind, "metadata": metadata, **body}


def make_disruption_budget(workload: Workload) -> Explained:
    budget = make_named(
        workload,
        "policy/v1",
        "PodDisruptionBudget",
        {"spec": {"maxUnavailable": 1, "selector": {"matchLabels": workload.selector}}},
    )
    return Explained(budget, "When nodes are drained, pods leave one after the other.")


def make_autoscaler(workload: Workload, kind: str, target: str) -> Explained:
    """
    Args:
        kind: of the object that is scaled.
        target: its name.
    """
    target_ref = {"apiVersion": "apps/v1", "kind": kind, "name": target}
    if workload.wanted.autoscale == "keda":
        return make_scaled_object(workload, target_ref)
    return make_horizontal_autoscaler(workload, target_ref)


def explain_threshold() -> str:
    return (
        f"Sequences that wait because no slot or no memory is free. More than {QUEUED_PER_POD} for each pod, beyond "
        "passing peaks, mean that another pod is needed."
    )


def make_horizontal_autoscaler(workload: Workload, target_ref: Object) -> Explained:
    metric = {"metric": {"name": METRIC}, "target": {"type": "AverageValue", "averageValue": str(QUEUED_PER_POD)}}
    spec = {
        "scaleTargetRef": target_ref,
        "minReplicas": workload.least_replicas,
        "maxReplicas": workload.most_replicas,
        "metrics": [Explained({"type": "Pods", "pods": metric}, explain_threshold())],
        "behavior": explain_behavior(),
    }
    autoscaler = make_named(workload, "autoscaling/v2", "HorizontalPodAutoscaler", {"spec": spec})
    return Explained(autoscaler, f"An adapter such as prometheus-adapter must offer {METRIC} of pods as custom metric.")


def explain_behavior() -> Explained:
    return Explained(
        BEHAVIOR,
        f"A new pod loads the model before it helps, so pods come one by one, and stay {SCALE_DOWN_S} s after a peak.",
    )


def make_scaled_object(workload: Workload, target_ref: Object) -> Explained:
    pods = (
        f"{target_ref['name']}-[0-9]+"
        if target_ref["kind"] == "StatefulSet"
        else (f"{target_ref['name']}-[a-z0-9]+-[a-z0-9]{{5}}")
    )
    namespace = f'namespace="{workload.wanted.namespace}",' if workload.wanted.namespace else ""
    trigger = {
        "type": "prometheus",
        "metadata": {
            "serverAddress": Explained(workload.prometheus, "Where the cluster's Prometheus answers (--prometheus)."),
            "query": f'sum({METRIC}{{{namespace}pod=~"{pods}"}})',
            "threshold": Explained(str(QUEUED_PER_POD), explain_threshold()),
        },
    }
    spec = {
        "scaleTargetRef": target_ref,
        "minReplicaCount": workload.least_replicas,
        "maxReplicaCount": workload.most_replicas,
        "pollingInterval": SCRAPE_S,
        "advanced": {"horizontalPodAutoscalerConfig": {"behavior": explain_behavior()}},
        "triggers": [trigger],
    }
    scaled = make_named(workload, "keda.sh/v1alpha1", "ScaledObject", {"spec": spec})
    return Explained(scaled, "KEDA scales by what waits in the queues of all pods.")


def make_pod_monitor(workload: Workload) -> Explained:
    endpoint: Object = {"port": "http", "path": "/metrics", "interval": f"{SCRAPE_S}s"}
    if workload.http_tls == "server":
        endpoint |= {
            "scheme": "https",
            "tlsConfig": Explained(
                {"insecureSkipVerify": True}, "Pods are scraped by address, which no certificate has."
            ),
        }
    spec = {"selector": {"matchLabels": workload.selector}, "podMetricsEndpoints": [endpoint]}
    return Explained(
        make_named(workload, "monitoring.coreos.com/v1", "PodMonitor", {"spec": spec}),
        "For the Prometheus operator.",
    )
