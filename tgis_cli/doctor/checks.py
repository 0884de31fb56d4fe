"""The table of checks, and how they are run. If a check itself fails, that becomes a finding."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

from tgis_cli.doctor import devices, environment, libraries, limits, model, network, storage, tls
from tgis_cli.doctor.verdict import Level, Subject, Verdict, fail, warn


@dataclass(frozen=True, slots=True)
class Check:
    """One row."""

    name: str  # a slug, unique
    group: str
    run: Callable[[Subject], Iterable[Verdict]]
    is_in_preflight: bool = False  # fast, and relevant to startup


CHECKS = (
    Check("devices", "Devices", devices.check_devices),
    Check("visible-devices", "Devices", devices.check_visible_devices),
    Check("driver", "Devices", devices.check_driver, is_in_preflight=True),
    Check("gpu-use", "Devices", devices.check_gpu_use),
    Check("cpus", "Devices", devices.check_cpus, is_in_preflight=True),
    Check("cpu-ops", "Devices", devices.check_cpu_ops),
    Check("memory", "Limits", limits.check_memory),
    Check("shared-memory", "Limits", limits.check_shared_memory, is_in_preflight=True),
    Check("limits", "Limits", limits.check_limits, is_in_preflight=True),
    Check("clock", "Limits", limits.check_clock, is_in_preflight=True),
    Check("kernel", "Limits", limits.check_kernel),
    Check("run-dir", "Storage", storage.check_run_dir, is_in_preflight=True),
    Check("log-file", "Storage", storage.check_log_file),
    Check("runs", "Storage", storage.check_runs),
    Check("cache", "Storage", storage.check_cache),
    Check("cache-content", "Storage", storage.check_cache_content),
    Check("user", "Storage", storage.check_user),
    Check("options", "Environment", environment.check_options),
    Check("misspelt", "Environment", environment.check_misspelt, is_in_preflight=True),
    Check("burdens", "Environment", environment.check_burdens, is_in_preflight=True),
    Check("paths", "Environment", environment.check_paths, is_in_preflight=True),
    Check("hub", "Environment", environment.check_hub),
    Check("proxies", "Environment", environment.check_proxies),
    Check("ports", "Network", network.check_ports),
    Check("exposure", "Network", network.check_exposure, is_in_preflight=True),
    Check("tls", "Network", tls.check_tls, is_in_preflight=True),
    Check("plain-http", "Network", tls.check_plain_http),
    Check("tracing", "Network", network.check_tracing, is_in_preflight=True),
    Check("libraries", "Libraries", libraries.check_libraries),
    Check("model", "Model", model.check_model),
    Check("fit", "Model", model.check_fit, is_in_preflight=True),
)
GROUP_OF = {check.name: check.group for check in CHECKS}


def run_checks(subject: Subject, checks: Iterable[Check] = CHECKS) -> list[Verdict]:
    """Verdicts in order, without repeated sentences."""
    verdicts: dict[str, Verdict] = {}
    for check in checks:
        for verdict in run_check(check, subject):
            verdicts.setdefault(verdict.sentence, replace(verdict, check=check.name))
    return list(verdicts.values())


def run_check(check: Check, subject: Subject) -> Iterator[Verdict]:
    try:
        yield from check.run(subject)
    except Exception as error:  # noqa: BLE001  a bug in one check must not hide the others' findings
        # The model's check does what startup does, so startup would break too.
        make_verdict = fail if check.run is model.check_model else warn
        yield make_verdict(
            f"The check {check.name} crashed: {type(error).__name__}: {error}.",
            "Report it with `tgis doctor --bundle FILE`; the other checks are not affected.",
        )


def check_machine(subject: Subject) -> list[str]:
    """The preflight checks at startup.

    Returns:
        Warnings.

    Raises:
        TgisError: the first finding that would keep the server from working.
    """
    verdicts = run_checks(subject, [check for check in CHECKS if check.is_in_preflight])
    for verdict in verdicts:
        if verdict.error is not None:
            raise verdict.error
    return [str(verdict) for verdict in verdicts if verdict.level is Level.WARN]
