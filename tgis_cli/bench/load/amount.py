"""Checks, before anything is sent, that an open loop has neither too many requests nor hardly any."""

from __future__ import annotations

from collections.abc import Iterable

from tgis_cli.bench.load.arrivals import MAX_CALLS, Pacing
from tgis_server.errors import UsageError

MAX_LEVEL_S = 86_400.0  # a day: whoever asks for more has mistaken the unit
MIN_BURSTINESS = 0.01  # below it, nearly all requests of a level come at one moment


def check_amount(rates: Iterable[float], pacing: Pacing) -> None:
    """
    Args:
        rates: those of the levels, in requests per second.

    Raises:
        UsageError: a level would have too many requests or hardly any, or would last more than a day.
    """
    if pacing.burstiness < MIN_BURSTINESS:
        raise UsageError(f"--burstiness is {pacing.burstiness:g}, but must be at least {MIN_BURSTINESS}.")
    for rate in rates:
        if pacing.max_s is None:
            check_without_duration(rate, pacing.max_calls or 1)
        else:
            check_duration(rate, pacing.max_s, pacing.max_calls)


def check_without_duration(rate: float, num_calls: int) -> None:
    if num_calls > MAX_CALLS:
        raise UsageError(f"--requests is {num_calls:,}, but an open loop may have at most {MAX_CALLS:,} per level.")
    if num_calls / rate > MAX_LEVEL_S:
        raise UsageError(f"--requests {num_calls} at --rate {rate:g} take more than a day: raise the rate.")


def check_duration(rate: float, duration_s: float, max_calls: int | None) -> None:
    num_calls = rate * duration_s
    if num_calls < 1:
        raise UsageError(
            f"--rate {rate:g} sends less than one request in {duration_s:g} s: raise it, or give a longer --duration."
        )
    if min(num_calls, max_calls or num_calls) > MAX_CALLS:
        raise UsageError(
            f"--rate {rate:g} for {duration_s:g} s makes {num_calls:,.0f} requests, but a level may have at most "
            f"{MAX_CALLS:,}: give a shorter --duration, or --requests."
        )
