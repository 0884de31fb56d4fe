"""What should change around a container: probes, time to stop, shared memory, ports, GPUs, secrets.

Pure: depends only on what the readers found and on the server's options.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

from tgis_cli.machine.gpus import split_devices
from tgis_cli.migrate.command import Command
from tgis_cli.migrate.containers import Container, Given, Probe, Surroundings, is_reference
from tgis_server.options import ServeConfig, options

STOP_MARGIN_S = 10.0  # for processes to end after the drain
PERIOD_S = 5  # of probes: how late Kubernetes may notice that a server is ready
LONG_PERIOD_S = 15
SECRET = re.compile(r"(TOKEN|SECRET|PASSWORD|PASSWD|API_?KEY|ACCESS_KEY|PRIVATE_KEY|CREDENTIALS)$")
GRACE_S = {True: ("Kubernetes", 30.0), False: ("Docker", 10.0)}  # defaults by is_kubernetes
PROBE_SERVICES = {"startupProbe": "startup", "livenessProbe": "live", "readinessProbe": "ready"}
PROBE_PATHS = {probe: f"/health/{kind}" for probe, kind in PROBE_SERVICES.items()}
KNOWN_PATHS = {"/health", "/metrics", *PROBE_PATHS.values()}
KNOWN_SERVICES = {"", "fmaas.GenerationService", *PROBE_SERVICES.values()}
WHY = {
    "startupProbe": "stays 200 once the server has been ready",
    "livenessProbe": "does not fail while the server starts or drains",
}


@dataclass(frozen=True, slots=True)
class Advice:
    """One suggested change."""

    topic: str
    text: str
    is_problem: bool = False  # without the change, the server does not start, or never becomes ready
    line: int = 0


def advise(container: Container, command: Command, config: ServeConfig, environ: Mapping[str, str]) -> Iterator[Advice]:
    """Yield all advice on one container."""
    yield from advise_on_command(container, command)
    around = container.around
    if around is None:
        return
    for source in around.missing:
        yield Advice("settings", f"{source} is not among the files: its variables are not checked.")
    yield from advise_on_stop(around, config, is_partial=container.is_partial)
    yield from advise_on_disk(around, config, environ)
    yield from advise_on_ports(around, config)
    yield from advise_on_gpus(around, count_shards(config, environ, around.num_gpus))
    yield from advise_on_services(around, environ)
    if around.is_kubernetes and not container.is_partial:
        yield from advise_on_probes(around, config)


def advise_on_command(container: Container, command: Command) -> Iterator[Advice]:
    if any("vllm_tgis_adapter" in word for word in container.argv):
        text = "The command is the vLLM adapter's: use text-generation-launcher."
        yield Advice("command", text, is_problem=True)
    elif container.argv and not command.executable:
        text = f"{container.argv[0]} is not one of the original's commands: what it starts is not checked."
        yield Advice("command", text)
    if command.subcommand == "serve":
        yield Advice("command", "text-generation-server serve starts the whole server: use text-generation-launcher.")


def advise_on_secrets(env: list[Given]) -> Iterator[Advice]:
    """Advise on secrets in variables, whichever program reads them."""
    for given in env:
        if SECRET.search(given.name) and given.value:
            text = f"{given.name} is in plain text: use a secretKeyRef."
            if given.name.startswith(("HF_", "HUGGING")):
                text = f"{given.name} is in plain text and is not needed: nothing is downloaded while serving."
            yield Advice("secrets", text, line=given.line)


def advise_on_stop(around: Surroundings, config: ServeConfig, *, is_partial: bool) -> Iterator[Advice]:
    needed = config.drain_delay + config.drain_timeout + STOP_MARGIN_S
    who, default_s = GRACE_S[around.is_kubernetes]
    is_now = f"not set ({who}: {default_s:g} s)" if around.grace_s is None else f"{around.grace_s:g} s"
    if is_partial or (default_s if around.grace_s is None else around.grace_s) >= needed:
        return
    yield Advice(
        "stop",
        f"{around.grace_name} is {is_now}, but answers may take {config.drain_timeout:g} s to finish "
        f"(--drain-timeout): allow {needed:g} s or more, or lower DRAIN_TIMEOUT.",
    )


def advise_on_disk(around: Surroundings, config: ServeConfig, environ: Mapping[str, str]) -> Iterator[Advice]:
    run_dir = PurePosixPath(config.run_dir or environ.get("TMPDIR") or "/tmp")  # noqa: S108  the container's
    is_writable = any(run_dir.is_relative_to(path) for path in around.writable)
    if around.is_root_read_only and not is_writable:
        text = f"The root is read-only and nothing writable is mounted at {run_dir}: mount an emptyDir or tmpfs."
        yield Advice("disk", text, is_problem=True)


def advise_on_ports(around: Surroundings, config: ServeConfig) -> Iterator[Advice]:
    if around.ports and config.grpc_port not in around.ports:
        listed = ", ".join(map(str, around.ports))
        yield Advice("ports", f"The gRPC port {config.grpc_port} is not among the container's ports {listed}.")


def count_shards(config: ServeConfig, environ: Mapping[str, str], num_gpus: int | None) -> int:
    """Count shards as the launcher will; without settings, there is one for each GPU that the device plugin shows."""
    visible = split_devices(environ.get("CUDA_VISIBLE_DEVICES", environ.get("NVIDIA_VISIBLE_DEVICES")))
    listed = num_gpus or 1 if visible is None else max(1, len(visible))
    return config.num_shard or config.num_gpus or listed


def advise_on_gpus(around: Surroundings, num_shard: int) -> Iterator[Advice]:
    if around.num_gpus is not None and around.num_gpus < num_shard:
        text = f"Shards set: {num_shard}, GPUs given: {around.num_gpus}. Set NUM_SHARD to {around.num_gpus}."
        yield Advice("GPUs", text, is_problem=True)
    elif around.num_gpus is not None and around.num_gpus > num_shard:
        text = f"{around.num_gpus} GPUs are given, but shards use only {num_shard}: set NUM_SHARD to {around.num_gpus}."
        yield Advice("GPUs", text)
    if num_shard > 1 and not around.has_shared_memory:
        how = "an emptyDir with medium: Memory at /dev/shm" if around.is_kubernetes else "--shm-size or shm_size 1g"
        yield Advice("memory", f"{num_shard} shards on GPUs use shared memory: provide 1 GiB ({how}).")
    elif num_shard == 1 and around.has_shared_memory:
        yield Advice("memory", "A single shard needs only the default shared memory: remove the mount at /dev/shm.")


def advise_on_services(around: Surroundings, environ: Mapping[str, str]) -> Iterator[Advice]:
    """A Service named grpc makes Kubernetes set GRPC_PORT=tcp://..., which is not a port."""
    by_env = {option.env: option for option in options()}
    for service in around.linked_services:
        variable = f"{service.upper().replace('-', '_')}_PORT"
        if variable in by_env and variable not in environ:
            text = f"The Service {service} makes Kubernetes set {variable}=tcp://…: set enableServiceLinks: false."
            yield Advice("services", text, is_problem=True)


def advise_on_probes(around: Surroundings, config: ServeConfig) -> Iterator[Advice]:
    probes = {probe.name: probe for probe in around.probes}
    for probe in around.probes:
        yield from advise_on_probe(probe, config)
    if "startupProbe" not in probes and "livenessProbe" in probes:
        yield Advice(
            "probes",
            "Without a startupProbe, the livenessProbe may kill a starting server: add one that queries "
            f"{PROBE_PATHS['startupProbe']} every {PERIOD_S} s.",
        )
    if "readinessProbe" not in probes:
        path = PROBE_PATHS["readinessProbe"]
        yield Advice("probes", f"Without a readinessProbe, requests arrive before the server is ready: probe {path}.")


def advise_on_probe(probe: Probe, config: ServeConfig) -> Iterator[Advice]:
    expected = {"httpGet": config.port, "grpc": config.grpc_port}.get(probe.how)
    if expected is not None and probe.port is not None and probe.port != expected:
        text = f"{probe.name} queries port {probe.port}, but the server listens on {expected}."
        yield Advice("probes", text, is_problem=True, line=probe.line)
    if probe.how == "httpGet" and probe.is_https != (config.http_tls != "off"):
        want = "scheme: HTTP, or --http-tls" if probe.is_https else "scheme: HTTPS"
        yield Advice("probes", f"{probe.name} needs {want}.", is_problem=True, line=probe.line)
    if (probe.how == "httpGet" and config.http_tls == "mutual") or (probe.how == "grpc" and config.tls_cert_path):
        text = f"{probe.name} does not support the server's TLS settings: use `tgis health` in an exec probe."
        yield Advice("probes", text, is_problem=True, line=probe.line)
    path = "/" + probe.target.partition("?")[0].removeprefix("/")
    if probe.how == "httpGet" and path not in KNOWN_PATHS and not is_reference(path):
        text = f"{probe.name} queries {path}, which answers 404: use {PROBE_PATHS[probe.name]}."
        yield Advice("probes", text, is_problem=True, line=probe.line)
    if probe.how == "grpc" and probe.target not in KNOWN_SERVICES and not is_reference(probe.target):
        text = f"{probe.name} names the service {probe.target}, which is unknown: use {PROBE_SERVICES[probe.name]}."
        yield Advice("probes", text, is_problem=True, line=probe.line)
    if probe.how == "httpGet" and path == "/health" and probe.name in WHY:
        text = f"{probe.name} queries /health, which works; {PROBE_PATHS[probe.name]} {WHY[probe.name]}."
        yield Advice("probes", text, line=probe.line)
    if probe.name == "readinessProbe" and probe.period_s >= LONG_PERIOD_S:
        text = f"readinessProbe runs every {probe.period_s} s, and a ready server may wait that long for requests: "
        yield Advice("probes", f"{text}set periodSeconds to {PERIOD_S}.", line=probe.line)
    if probe.name == "startupProbe" and probe.period_s >= LONG_PERIOD_S:
        count = -(-probe.period_s * probe.threshold // PERIOD_S)
        text = (
            f"startupProbe runs every {probe.period_s} s, and a ready server may wait that long: periodSeconds "
            f"{PERIOD_S} and failureThreshold {count} allow the same {probe.period_s * probe.threshold / 60:g} minutes."
        )
        yield Advice("probes", text, line=probe.line)
