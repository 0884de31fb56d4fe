"""Situations in which an alert fires, and others in which it must not."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Case:
    """Series by name in promtool's notation, one value each half minute, and whether the alert fires at a time."""

    alert: str
    situation: str
    series: dict[str, str]
    fires: bool
    at: str = "20m"


JOB = 'namespace="prod",job="prod/granite"'  # as the Prometheus operator names a PodMonitor
A, B = (f'{JOB},pod="{pod}",instance="{address}"' for pod, address in (("a", "10.0.0.1:3000"), ("b", "10.0.0.2:3000")))
DEPLOYMENT = 'namespace="prod",deployment="granite",job="kube-state-metrics"'
LOOP = 'namespace="prod",pod="a",container="server",reason="CrashLoopBackOff",job="kube-state-metrics"'
CALLS = {f'tgi_request_count_total{{{A},kind="stream"}}': "0+60x80"}


def failures(err: str, values: str) -> dict[str, str]:
    return {f'tgi_request_failure_total{{{A},err="{err}"}}': values}


def waits(*, short: str, long: str) -> dict[str, str]:
    """Requests that waited less than a second, and those that waited less than 44 s, the short ones included."""
    counts = {"0.985": short, "29.2": short, "43.8": long, "+Inf": long}
    return {f'tgi_request_queue_duration_bucket{{{A},le="{bound}"}}': values for bound, values in counts.items()}


CASES = (
    Case("TgisDown", "its only replica fails", {f"tgi_ready{{{A}}}": "1x10 0x70", f"up{{{A}}}": "1x80"}, True),
    Case("TgisDown", "no scrape is answered", {f"tgi_ready{{{A}}}": "1x10 stale", f"up{{{A}}}": "1x10 0x70"}, True),
    Case(
        "TgisDown",
        "another replica serves",
        {f"tgi_ready{{{A}}}": "1x10 0x70", f"tgi_ready{{{B}}}": "1x80", f"up{{{A}}}": "1x80", f"up{{{B}}}": "1x80"},
        False,
    ),
    Case("TgisDown", "its first start takes long", {f"tgi_ready{{{A}}}": "0x80", f"up{{{A}}}": "1x80"}, False),
    Case("TgisDown", "it was removed", {f"tgi_ready{{{A}}}": "1x10 stale", f"up{{{A}}}": "1x10 stale"}, False),
    Case(
        "TgisHasNoPods",
        "pods cannot be scheduled",
        {
            f"tgi_ready{{{A}}}": "1x10 stale",
            f"up{{{A}}}": "1x10 stale",
            f"kube_deployment_spec_replicas{{{DEPLOYMENT}}}": "2x80",
        },
        True,
    ),
    Case(
        "TgisHasNoPods",
        "pods of a StatefulSet cannot be scheduled",
        {
            f"tgi_ready{{{A}}}": "1x10 stale",
            f"up{{{A}}}": "1x10 stale",
            f"kube_statefulset_replicas{{{DEPLOYMENT.replace('deployment', 'statefulset')}}}": "2x80",
        },
        True,
    ),
    Case(
        "TgisHasNoPods",
        "pods of KServe cannot be scheduled",
        {
            f"tgi_ready{{{A}}}": "1x10 stale",
            f"up{{{A}}}": "1x10 stale",
            f"kube_deployment_spec_replicas{{{DEPLOYMENT.replace('granite', 'granite-predictor')}}}": "2x80",
        },
        True,
    ),
    Case(
        "TgisHasNoPods",
        "pods of another deployment cannot be scheduled",
        {
            f"tgi_ready{{{A}}}": "1x10 stale",
            f"up{{{A}}}": "1x10 stale",
            f"kube_deployment_spec_replicas{{{DEPLOYMENT.replace('granite', 'granite-8b')}}}": "2x80",
        },
        False,
    ),
    Case(
        "TgisHasNoPods",
        "it was scaled to zero",
        {
            f"tgi_ready{{{A}}}": "1x10 stale",
            f"up{{{A}}}": "1x10 stale",
            f"kube_deployment_spec_replicas{{{DEPLOYMENT}}}": "2x10 0x70",
        },
        False,
    ),
    Case(
        "TgisHasNoPods",
        "a pod restarts",
        {
            f"tgi_ready{{{A}}}": "1x10 stale",
            f"up{{{A}}}": "1x10 0x70",
            f"kube_deployment_spec_replicas{{{DEPLOYMENT}}}": "2x80",
        },
        False,
    ),
    Case("TgisRequestsFail", "one call in ten fails", {**CALLS, **failures("generate", "0+6x80")}, True),
    Case("TgisRequestsFail", "all fail before the engine", {**CALLS, **failures("unknown", "0+60x80")}, True),
    Case(
        "TgisRequestsFail",
        "requests are invalid, cancelled or refused",
        {
            **CALLS,
            **failures("validation", "0+20x80"),
            **failures("cancelled", "0+20x80"),
            **failures("conc_limit", "0+20x80"),
            **failures("generate", "0+1x80"),
        },
        False,
    ),
    Case(
        "TgisRequestsFail",
        "one of two calls fails in a quiet night",
        {f'tgi_request_count_total{{{A},kind="stream"}}': "0x30 2x50", **failures("generate", "0x30 1x50")},
        False,
    ),
    Case(
        "TgisOverloaded", "it refuses a fifth of the calls", {**CALLS, **failures("conc_limit", "0+12x80")}, True, "25m"
    ),
    Case("TgisOverloaded", "it refuses a burst", {**CALLS, **failures("conc_limit", "0+12x10 120x70")}, False, "25m"),
    Case("TgisQueueIsLong", "one request in ten waits long", waits(short="0+90x80", long="0+100x80"), True, "25m"),
    Case("TgisQueueIsLong", "one in fifty waits long", waits(short="0+98x80", long="0+100x80"), False, "25m"),
    Case(
        "TgisStalled",
        "requests wait, and nothing is computed",
        {
            f"tgi_permits_held{{{A}}}": "4x80",
            f"tgi_step_device_duration_count{{{A}}}": "0+50x10 500x70",
        },
        True,
    ),
    Case(
        "TgisStalled",
        "a long prompt is computed",
        {
            f"tgi_permits_held{{{A}}}": "4x80",
            f"tgi_step_device_duration_count{{{A}}}": "0+1x80",
        },
        False,
    ),
    Case(
        "TgisStalled",
        "there is nothing to do",
        {
            f"tgi_permits_held{{{A}}}": "0x80",
            f"tgi_step_device_duration_count{{{A}}}": "500x80",
        },
        False,
    ),
    Case(
        "TgisRestarts",
        "it starts for the fourth time",
        {
            f'tgi_process_start_time_seconds{{{A},process="frontend"}}': "1x10 300x10 stale 900x9 1100x50",
        },
        True,
    ),
    Case(
        "TgisRestarts",
        "it failed once, and was upgraded by a new pod",
        {
            f'tgi_process_start_time_seconds{{{A},process="frontend"}}': "1x10 300x10 stale",
            f'tgi_process_start_time_seconds{{{B},process="frontend"}}': "_x20 600x60",
        },
        False,
    ),
    Case(
        "TgisCrashLoop",
        "a pod that has served cannot start",
        {
            f'tgi_server_info{{{A},model="granite"}}': "1x10 stale",
            f"kube_pod_container_status_waiting_reason{{{LOOP}}}": "_x10 1x70",
        },
        True,
    ),
    Case(
        "TgisCrashLoop",
        "the pod is of another server",
        {
            f'tgi_server_info{{{B},model="granite"}}': "1x80",
            f"kube_pod_container_status_waiting_reason{{{LOOP}}}": "_x10 1x70",
        },
        False,
    ),
    Case(
        "TgisCrashLoop",
        "it came back",
        {
            f'tgi_server_info{{{A},model="granite"}}': "1x10 _x5 1x65",
            f"kube_pod_container_status_waiting_reason{{{LOOP}}}": "_x10 1x5 stale",
        },
        False,
    ),
    Case(
        "TgisCertificateExpires",
        "it is not renewed",
        {
            f'tgi_tls_certificate_expiry_timestamp_seconds{{{A},path="/tls/tls.crt"}}': "80000x80",
        },
        True,
    ),
    Case(
        "TgisCertificateExpires",
        "it is renewed the day before",
        {
            f'tgi_tls_certificate_expiry_timestamp_seconds{{{A},path="/tls/tls.crt"}}': "80000x10 7000000x70",
        },
        False,
    ),
)
OF_A_REPLICA = {"TgisStalled", "TgisRestarts"}
OF_A_POD = {"TgisCrashLoop"}


def labels_of(alert: str) -> str:
    """The labels of a firing alert, by which Alertmanager routes and groups it."""
    kept = A if alert in OF_A_REPLICA else 'namespace="prod",pod="a"' if alert in OF_A_POD else JOB
    return f'ALERTS{{alertname="{alert}",alertstate="firing",severity="critical",{kept}}}'
