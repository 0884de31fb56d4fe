"""What is decided once about the pods of a model, for all targets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from tgis_cli.manifest.command_line import list_given, list_secret, write_args
from tgis_cli.manifest.explained import Explained
from tgis_cli.manifest.model_source import Placement, place_model
from tgis_cli.manifest.names import name_after
from tgis_cli.manifest.resources import (
    CPUS_PER_SHARD,
    SMALL_BYTES,
    Resources,
    imagine_node,
    size_for_cpu,
    size_for_gpus,
    size_for_rehearsal,
    write_quantity,
)
from tgis_cli.manifest.timing import Timing, decide_timing
from tgis_cli.manifest.wanted import Wanted
from tgis_cli.model_files import DEMO_MODEL_DIR
from tgis_cli.plan import Devices, PlanReport, make_report, read_devices
from tgis_cli.plan.source import ModelSource
from tgis_server import __version__
from tgis_server.errors import NotEnoughDevices, UsageError
from tgis_server.options import LoadedConfig, Option
from tgis_server.words.url_credentials import split_credentials

TLS_DIR = "/tls"
CLIENT_CA_DIR = "/client-ca"
ENDPOINT_VARIABLE = "HF_ENDPOINT"  # of a mirror of the hub
DEFAULT_MAX_REPLICAS = 4


@dataclass(frozen=True, slots=True)
class Workload:
    """What is decided about the pods of a model; every target shows the same."""

    wanted: Wanted
    name: str
    title: str  # the model as the user named it
    args: tuple[str | Explained, ...]
    secret_options: tuple[Option, ...]  # whose values come from a Secret, as environment variables
    placement: Placement
    num_bytes: int  # of the model's files
    resources: Resources
    timing: Timing
    http_port: int
    grpc_port: int
    http_tls: str
    termination_log: str
    has_log_file: bool
    otlp_endpoint: str | None
    hub_endpoint: str | None
    warnings: tuple[str, ...] = ()

    @property
    def image(self) -> str:
        return self.wanted.image or f"tgis:{__version__}"

    @property
    def has_tls(self) -> bool:
        """Whether the gRPC port has TLS."""
        return self.wanted.tls_secret is not None

    @property
    def most_replicas(self) -> int:
        if self.wanted.autoscale is None:
            return self.wanted.replicas
        return self.wanted.max_replicas or max(DEFAULT_MAX_REPLICAS, 2 * self.wanted.replicas)

    @property
    def is_stateful(self) -> bool:
        """Whether each pod keeps a volume with its own copy of the model."""
        return self.placement.has_own_copy and not self.wanted.is_kserve

    @property
    def fetches(self) -> bool:
        """Whether an init container fetches the model."""
        return is_fetched(self.placement, self.wanted)

    @property
    def labels(self) -> dict[str, str]:
        return {**self.selector, "app.kubernetes.io/managed-by": "tgis"}

    @property
    def selector(self) -> dict[str, str]:
        return {"app.kubernetes.io/name": "tgis", "app.kubernetes.io/instance": self.name}


def decide_workload(wanted: Wanted, loaded: LoadedConfig, source: ModelSource, environ: Mapping[str, str]) -> Workload:
    """
    Args:
        loaded: the launch options, with the paths of TLS files in the pod.

    Raises:
        UsageError: options contradict each other.
        NotEnoughDevices, ModelError: the model cannot be served, as in a plan.
    """
    placement = place_model(source, loaded.config, wanted)
    report, resources = plan_resources(wanted, loaded, source, environ)
    is_without_model = loaded.config.rehearse and placement.source.kind == "image"
    num_bytes = 0 if is_without_model else source.num_bytes + source.convert_bytes
    fetch_bytes = num_bytes if is_fetched(placement, wanted) else 0
    config = loaded.config
    timing = decide_timing(loaded, num_bytes, fetch_bytes=fetch_bytes, is_hub=placement.source.kind == "hub")
    return Workload(
        wanted=wanted,
        name=wanted.name or name_after(source.model),
        title=source.model,
        args=tuple(choose_args(loaded, placement, resources, timing, wanted)),
        secret_options=tuple(list_secret(loaded)),
        placement=placement,
        num_bytes=num_bytes,
        resources=resources,
        timing=timing,
        http_port=config.port,
        grpc_port=config.grpc_port,
        http_tls=config.http_tls,
        termination_log=str(config.termination_log),
        has_log_file=config.log_file is not None,
        otlp_endpoint=split_credentials(config.otlp_endpoint)[0] if config.otlp_endpoint else None,
        hub_endpoint=read_endpoint(environ) if placement.source.kind == "hub" else None,
        warnings=tuple(find_warnings(report, placement, wanted, environ)),
    )


def is_fetched(placement: Placement, wanted: Wanted) -> bool:
    """Whether one of our init containers fetches the model."""
    return placement.source.kind in ("hub", "bundle") and not wanted.is_kserve


def read_endpoint(environ: Mapping[str, str]) -> str | None:
    """The hub's mirror, from which this command reads headers and pods download.

    Raises:
        UsageError: its URL contains credentials, which would be printed.
    """
    endpoint = environ.get(ENDPOINT_VARIABLE, "").strip()
    if split_credentials(endpoint)[1]:
        raise UsageError(
            f"{ENDPOINT_VARIABLE} contains credentials, which a manifest must not show: name a mirror without them, or "
            "download with a token (--hf-token-secret)."
        )
    return endpoint or None


def find_warnings(
    report: PlanReport, placement: Placement, wanted: Wanted, environ: Mapping[str, str]
) -> Iterator[str]:
    """Those of the plan, and what the pods still lack."""
    if report.resolved is not None:
        yield from report.resolved.warnings
    if report.chosen is not None:
        yield from report.chosen.notes
    is_hub = placement.source.kind == "hub"
    if is_hub and not wanted.is_kserve and wanted.fs_group is None:
        yield (
            "On most clusters but OpenShift root owns the volumes, and pods cannot write the model into them: add "
            "--fs-group 2000 there."
        )
    if is_hub and wanted.is_kserve and read_endpoint(environ):
        yield (
            f"KServe downloads the model itself and is not told of {ENDPOINT_VARIABLE}: set it where KServe's storage "
            "initializer is configured (a ClusterStorageContainer)."
        )
    if placement.source.kind == "image" and placement.model:
        yield (
            f"The image must have the model at {placement.model}: build it with `make build BUILD_ARGS='--model DIR'`, "
            "and name it with --image."
        )
    if not placement.model and report.source.model_dir != DEMO_MODEL_DIR:
        yield (
            f"The rehearsal downloads nothing: it uses the demo model's tokenizer and length, not those of "
            f"{report.source.model} (--model-source changes that)."
        )
    elif report.source.convert_bytes and not (is_hub and not wanted.is_kserve):
        yield (
            f"{report.source.model} has PyTorch weights: convert them with `tgis convert-to-safetensors` before "
            f"--model-source {placement.source} is used."
        )


def state_devices(wanted: Wanted, loaded: LoadedConfig) -> Devices:
    """The devices of the cluster: those stated, or a CPU with as much memory as needed."""
    num_shard = loaded.config.num_shard or loaded.config.num_gpus or 1
    node = imagine_node(wanted.cpu_cores or CPUS_PER_SHARD * num_shard)
    if wanted.gpu is None and wanted.cpu is None:
        return Devices(node, "a CPU with as much memory as the model needs")
    return read_devices(wanted.gpu, wanted.cpu, loaded.config, node)


def plan_resources(
    wanted: Wanted, loaded: LoadedConfig, source: ModelSource, environ: Mapping[str, str]
) -> tuple[PlanReport, Resources]:
    """
    Raises:
        UsageError, NotEnoughDevices, ModelError: the plan has a problem.
    """
    devices = state_devices(wanted, loaded)
    report = make_report(source, devices, loaded, environ)
    if report.problem is None:
        if loaded.config.rehearse:
            return report, size_for_rehearsal(loaded.config.num_shard or loaded.config.num_gpus or 1, wanted.cpu_cores)
        return report, size_resources(report, devices, wanted)
    if wanted.cpu is None or not isinstance(report.problem, NotEnoughDevices):
        raise report.problem
    # The plan's message is about this machine's memory. If --cpu is not what is too small, this raises again.
    unlimited, needed = plan_resources(replace(wanted, cpu=None), loaded, source, environ)
    assert unlimited.resolved is not None, "there was no problem"
    can_halve = unlimited.resolved.run.dtype == "float32" and source.num_bytes > SMALL_BYTES
    halve = ", or halve the weights with --dtype bfloat16" if can_halve else ""
    raise NotEnoughDevices(
        f"{source.model} does not fit into --cpu {wanted.cpu}. Without --cpu a pod asks for "
        f"{write_quantity(needed.memory_bytes)}: {needed.memory_why}. Raise --cpu{halve}."
    )


def size_resources(report: PlanReport, devices: Devices, wanted: Wanted) -> Resources:
    resolved, fit, weights = report.resolved, report.chosen, report.weights
    assert resolved is not None, "a plan without a problem is complete"
    assert fit is not None, "a plan without a problem is complete"
    assert weights is not None, "a plan without a problem is complete"
    assert resolved.sizes is not None, "only a rehearsal has none"
    if resolved.run.device == "cuda":
        return size_for_gpus(fit, devices.stated, weights.num_bytes, weights.num_files, wanted.cpu_cores)
    return size_for_cpu(resolved.run, resolved.sizes, fit, devices.machine, wanted.cpu_cores)


def choose_args(
    loaded: LoadedConfig, placement: Placement, resources: Resources, timing: Timing, wanted: Wanted
) -> Iterator[str | Explained]:
    """The given options, and those that a cluster needs."""
    values = list_given(loaded)
    values.pop("termination_log", None)  # a field of the container says it
    reasons = {}

    def add(name: str, value: object, reason: str) -> None:
        if values.get(name) != value:
            values[name], reasons[name] = value, reason

    if loaded.config.rehearse:
        values.pop("device", None)
    elif resources.num_gpus:
        add("device", "cuda", "Startup fails without a usable GPU, instead of falling back to the CPU.")
    else:
        add("device", "cpu", "Some clusters expose GPUs to pods that have not requested any.")
    if resources.num_gpus > 1:
        values.pop("num_gpus", None)
        add("num_shard", resources.num_gpus, "The fewest GPUs that hold the model.")
    if resources.kv_cache_memory is not None:
        add(
            "kv_cache_memory",
            resources.kv_cache_memory,
            "For each shard; the memory request below has room for exactly this.",
        )
    if timing.connection_age_s:
        why = "Clients reconnect, so they reach new pods, and leave a stopping one before --drain-delay is over."
        add("max_connection_age", timing.connection_age_s, why)
    why = "Calls are accepted until all clients have seen the pod leave, so no preStop hook is needed."
    add("drain_delay", timing.drain_delay_s, why)
    return write_args(placement.model, None if wanted.is_kserve else placement.revision, values, reasons)


def with_pod_files(flags: Mapping[str, object], wanted: Wanted) -> dict[str, object]:
    """The flags with the paths of the TLS files in the pod."""
    added: dict[str, object] = {}
    if wanted.tls_secret:
        added |= {"tls_cert_path": f"{TLS_DIR}/tls.crt", "tls_key_path": f"{TLS_DIR}/tls.key"}
    if wanted.client_ca:
        added["tls_client_ca_cert_path"] = f"{CLIENT_CA_DIR}/ca.crt"
    return {**flags, **added}
