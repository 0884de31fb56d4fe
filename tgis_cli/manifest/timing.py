"""How long a pod may take to start and to stop. Pure arithmetic from documented times and stated rates."""

from __future__ import annotations

import math
from dataclasses import dataclass

from tgis_cli.clients.stopping import SLACK_S
from tgis_server.options import LoadedConfig
from tgis_server.words.sizes import format_bytes

DISK_BYTES_PER_S = 100_000_000  # a slow network disk
HUB_BYTES_PER_S = 25_000_000  # a slow connection
START_S = 600  # the least besides reading; a patient probe costs nothing, because the launcher itself ends hangs
PROBE_S = 5  # the longest that a ready server waits for its first request
SCHEDULE_S = 600  # for finding a node and pulling the image
DRAIN_DELAY_S = 15.0  # for the change of endpoints to reach all clients
CONNECTION_AGE_SHARE = 2 / 3  # of the drain delay: connections opened before the change are closed within it
GRACE_MARGIN_S = 10  # beyond the launcher's own limit


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds and numbers of tries, each with its reason."""

    drain_delay_s: float
    connection_age_s: float  # after which clients must reconnect; 0: never
    grace_s: int
    grace_why: str
    startup_failures: int
    startup_why: str
    progress_s: int
    progress_why: str


def decide_timing(loaded: LoadedConfig, num_bytes: int, *, fetch_bytes: int, is_hub: bool) -> Timing:
    """
    Args:
        loaded: the launch options. Given times are kept; the defaults differ from those outside a cluster.
        num_bytes: the total size of the files that a start reads.
        fetch_bytes: that an init container writes before that.
        is_hub: whether it downloads them.
    """
    config, origins = loaded.config, loaded.origins
    drain_delay_s = DRAIN_DELAY_S if origins["drain_delay"] == "default" else config.drain_delay
    connection_age_s = config.max_connection_age
    if origins["max_connection_age"] == "default":
        connection_age_s = float(int(drain_delay_s * CONNECTION_AGE_SHARE))
    rest_s = max(START_S, math.ceil(2 * config.startup_timeout))
    startup_s = rest_s + num_bytes / DISK_BYTES_PER_S
    failures = math.ceil(startup_s / PROBE_S)
    fetch_rate = HUB_BYTES_PER_S if is_hub else DISK_BYTES_PER_S
    fetch_s = math.ceil(fetch_bytes / fetch_rate)
    grace_s = math.ceil(drain_delay_s + config.drain_timeout + SLACK_S) + GRACE_MARGIN_S
    fetching = f" + {fetch_s} s to fetch the model at {fetch_rate // 1_000_000} MB/s" if fetch_bytes else ""
    return Timing(
        drain_delay_s=drain_delay_s,
        connection_age_s=connection_age_s,
        grace_s=grace_s,
        grace_why=(
            f"{drain_delay_s:g} s (--drain-delay) + {config.drain_timeout:g} s (--drain-timeout) + {SLACK_S:g} s in "
            f"which the launcher ends its processes + {GRACE_MARGIN_S} s"
        ),
        startup_failures=failures,
        startup_why=(
            f"{format_bytes(num_bytes)} from a disk with {DISK_BYTES_PER_S // 1_000_000} MB/s, and {rest_s} s for the "
            f"rest: {failures} x {PROBE_S} s. If a start hangs, the launcher ends it long before that, and says "
            f"why (--startup-timeout, {config.startup_timeout:g} s without progress)"
        ),
        progress_s=SCHEDULE_S + failures * PROBE_S + fetch_s,
        progress_why=(
            f"{SCHEDULE_S} s for a node and the image{fetching} + {failures * PROBE_S} s for the startup probe"
        ),
    )
