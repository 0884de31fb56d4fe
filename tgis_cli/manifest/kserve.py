"""The objects of KServe: a ServingRuntime with the container, and an InferenceService with the model and the pod."""

from __future__ import annotations

from collections.abc import Iterator

from tgis_cli.manifest.explained import Explained, Object, without_none
from tgis_cli.manifest.kubernetes import HEADLESS_CLIENTS, describe, make_service_account
from tgis_cli.manifest.objects import make_object
from tgis_cli.manifest.pod import DASHBOARD, make_container, make_pod_settings, make_tolerations, make_volumes
from tgis_cli.manifest.scaling import make_autoscaler, make_disruption_budget, make_pod_monitor
from tgis_cli.manifest.workload import Workload

FORMAT = "tgis"


def make_kserve_objects(workload: Workload) -> Iterator[Explained]:
    """All objects, in the order in which they are applied."""
    token = workload.wanted.hf_token_secret
    yield make_service_account(workload, (token,) if token else ())
    yield make_serving_runtime(workload)
    yield make_inference_service(workload)
    if workload.most_replicas > 1:
        yield make_disruption_budget(workload)
    if workload.wanted.autoscale:
        yield make_autoscaler(workload, "Deployment", f"{workload.name}-predictor")
    if workload.wanted.monitor:
        yield make_pod_monitor(workload)


def make_serving_runtime(workload: Workload) -> Explained:
    if workload.has_tls:
        port, why = "tls-grpc", "The name of the port tells a mesh that the server itself terminates TLS."
    else:
        port, why = "h2c", "The port is named h2c, by which KServe recognises gRPC."
    spec = without_none(
        {
            "labels": {**workload.labels, **DASHBOARD},
            "annotations": {
                **DASHBOARD,
                "prometheus.io/path": "/metrics",
                "prometheus.io/port": str(workload.http_port),
            },
            "multiModel": False,
            "supportedModelFormats": [{"name": FORMAT, "autoSelect": False}],
            "tolerations": make_tolerations(workload),
            "containers": [make_container(workload, "kserve-container", port)],
            "volumes": make_volumes(workload),
        }
    )
    runtime = make_object(workload, "serving.kserve.io/v1alpha1", "ServingRuntime", {"spec": spec})
    runtime["metadata"] = {
        **runtime["metadata"],
        "labels": {**workload.labels, "opendatahub.io/dashboard": "true"},
        "annotations": {"openshift.io/display-name": f"TGIS for {workload.title}"},
    }
    return Explained(runtime, f"{describe(workload)} {why}")


def make_inference_service(workload: Workload) -> Explained:
    wanted = workload.wanted
    annotations = {"serving.kserve.io/deploymentMode": "RawDeployment"}
    if wanted.autoscale:
        annotations["serving.kserve.io/autoscalerClass"] = "external"
    model = without_none({"modelFormat": {"name": FORMAT}, "runtime": workload.name, "storageUri": find_uri(workload)})
    predictor: Object = {
        "minReplicas": workload.wanted.replicas,
        "maxReplicas": workload.most_replicas,
        "deploymentStrategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
        **make_pod_settings(workload),
        "model": model,
    }
    service = make_object(workload, "serving.kserve.io/v1beta1", "InferenceService", {"spec": {"predictor": predictor}})
    service["metadata"] = {**service["metadata"], "annotations": annotations}
    return Explained(
        service,
        "A plain Deployment (RawDeployment): streams may last longer than Knative's time limit, and probes use a "
        "different port from calls. Open Data Hub makes its Service headless unless the DataScienceCluster has "
        f"rawDeploymentServiceConfig: Headed. {HEADLESS_CLIENTS}",
    )


def find_uri(workload: Workload) -> str | None:
    """Where KServe's storage initializer finds the model; ``None`` if it is in the image."""
    source, revision = workload.placement.source, workload.placement.revision
    match source.kind:
        case "pvc":
            return f"pvc://{source.claim}/{source.path}"
        case "hub":
            return f"hf://{workload.title}" + (f":{revision}" if revision else "")
        case _:
            return None
