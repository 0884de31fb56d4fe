"""What the command line asks for besides the launch options, and which options contradict each other."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tgis_cli.manifest.names import MAX_NAMESPACE, NAMESPACE, check_image, check_name, check_resource
from tgis_server.errors import UsageError
from tgis_server.options import ServeConfig
from tgis_server.words.url_credentials import split_credentials

PROMETHEUS = "http://prometheus-operated.monitoring.svc:9090"
WRITABLE = Path("/tmp")  # noqa: S108  in the container
HOSTS = ("0.0.0.0", "::")  # noqa: S104  in the container


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """The command's own options. ``None``: not given."""

    target: str = "deployment"  # or "kserve" or "kustomize"
    name: str | None = None
    namespace: str | None = None
    image: str | None = None
    replicas: int = 1
    model_source: str | None = None
    gpu: str | None = None
    cpu: str | None = None
    cpu_cores: int | None = None
    autoscale: str | None = None  # "hpa" or "keda"
    max_replicas: int | None = None
    prometheus: str | None = None
    tls_secret: str | None = None
    client_ca: str | None = None
    hf_token_secret: str | None = None
    fs_group: int | None = None
    monitor: bool = False

    @property
    def is_kserve(self) -> bool:
        return self.target == "kserve"


def check_wanted(wanted: Wanted) -> None:
    """Check everything that needs neither the model nor the launch options.

    Raises:
        UsageError: the first problem.
    """
    if wanted.name is not None:
        check_name("--name", wanted.name)
    if wanted.namespace is not None:
        check_name("--namespace", wanted.namespace, NAMESPACE, MAX_NAMESPACE)
    if wanted.image is not None:
        check_image(wanted.image)
    for flag, resource in (
        ("--tls-secret", wanted.tls_secret),
        ("--client-ca", wanted.client_ca),
        ("--hf-token-secret", wanted.hf_token_secret),
    ):
        if resource is not None:
            check_resource(flag, resource)
    for problem in find_contradictions(wanted):
        raise UsageError(problem)


def find_contradictions(wanted: Wanted) -> Iterator[str]:
    if wanted.prometheus is not None and split_credentials(wanted.prometheus)[1]:
        yield (
            "--prometheus contains credentials, which a manifest must not show: name the URL without them, and add a "
            "TriggerAuthentication to the ScaledObject."
        )
    elif wanted.prometheus is not None and not wanted.prometheus.startswith(("http://", "https://")):
        yield f"--prometheus is {wanted.prometheus!r}, but must be a URL, such as {PROMETHEUS}."
    if wanted.autoscale == "keda" and wanted.namespace is None:
        yield (
            "--autoscale keda needs --namespace: KEDA asks Prometheus, which has the queues of pods with the same "
            "names in other namespaces too."
        )
    most = wanted.max_replicas
    if most is not None and wanted.autoscale is None:
        yield f"--max-replicas {most} needs --autoscale hpa or --autoscale keda; --replicas alone is a fixed number."
    if most is not None and wanted.autoscale and most <= wanted.replicas:
        yield (
            f"--autoscale {wanted.autoscale} goes from --replicas {wanted.replicas} up to --max-replicas {most}, which "
            "leaves nothing to scale: raise --max-replicas."
        )
    if wanted.prometheus is not None and wanted.autoscale != "keda":
        yield f"--prometheus {wanted.prometheus} is only used by KEDA: add --autoscale keda, or leave it out."
    if wanted.client_ca is not None and wanted.tls_secret is None:
        yield f"--client-ca {wanted.client_ca} needs --tls-secret, the Secret with the server's certificate."


def check_launch_options(config: ServeConfig, wanted: Wanted) -> None:
    """Check that the launch options make sense in a pod.

    Args:
        config: as given, before the files of ``--tls-secret`` are added.

    Raises:
        UsageError: the first problem.
    """
    for problem in find_misfits(config, wanted):
        raise UsageError(problem)


def find_misfits(config: ServeConfig, wanted: Wanted) -> Iterator[str]:
    for flag, path in (
        ("--tls-cert-path", config.tls_cert_path),
        ("--tls-key-path", config.tls_key_path),
        ("--tls-client-ca-cert-path", config.tls_client_ca_cert_path),
    ):
        if path is not None and wanted.tls_secret:
            yield f"--tls-secret {wanted.tls_secret} and {flag} {path} contradict each other: leave {flag} out."
        elif path is not None:
            yield f"{flag} {path} is a file of this machine: put it into a Secret, and name that with --tls-secret."
    if config.host not in HOSTS:
        yield f"--host {config.host} would hide the server from its Service and its probes: leave it out."
    for flag, port in (("--port", config.port), ("--grpc-port", config.grpc_port)):
        if port == 0:
            yield f"{flag} 0 lets the server choose a port, which its Service and its probes cannot know."
    for flag, path in (
        ("--run-dir", config.run_dir),
        ("--log-file", config.log_file),
        ("--shard-uds-path", Path(config.shard_uds_path) if config.shard_uds_path else None),
    ):
        if path is not None and path != WRITABLE and WRITABLE not in path.parents:
            yield f"{flag} {path} cannot be written in the pod, where only {WRITABLE} can: name a path there."
    if config.device == "cuda" and wanted.gpu is None:
        yield "--device cuda needs --gpu, which states the GPUs of the cluster."
    if config.http_tls != "off" and wanted.tls_secret is None:
        yield f"--http-tls {config.http_tls} needs --tls-secret, the Secret with the server's certificate."
    if config.http_tls == "mutual" and wanted.client_ca is None:
        yield "--http-tls mutual needs --client-ca, the ConfigMap with the CA of the clients' certificates."
    if config.http_tls == "mutual" and wanted.monitor:
        yield "--http-tls mutual refuses Prometheus, which --monitor sets up without a certificate: use server or off."
