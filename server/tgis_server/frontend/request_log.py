"""Writes one log line for each input, with the correlation id of its call.

A line contains only numbers and names: prompts and outputs do not belong in logs.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Iterable

from tgis_server.frontend.generation import Call
from tgis_server.frontend.output import Output
from tgis_server.wire.messages import FinishReason

logger = logging.getLogger(__name__)

CORRELATION_ID = "x-correlation-id"  # metadata, received from the client and sent back
MAX_ID_CHARS = 128
LEVELS = {
    FinishReason.TOKEN_LIMIT: logging.WARNING,
    FinishReason.CANCELLED: logging.WARNING,
    FinishReason.ERROR: logging.ERROR,
}


def get_correlation_id(metadata: Iterable[tuple[str, str | bytes]] | None) -> str:
    """The client's correlation id, made safe for logs; a random one if the client sent none."""
    for key, value in metadata or ():
        if key == CORRELATION_ID and isinstance(value, str) and value:
            is_plain = value.isascii() and value.isprintable()
            return value[:MAX_ID_CHARS] if is_plain else "<non-ascii>"
    return secrets.token_hex(8)


def log_outputs(call: Call, correlation_id: str) -> None:
    """Log how each input of a finished call ended."""
    now = time.monotonic()
    for output in call.outputs:
        reason = get_finish_reason(output)
        level = LEVELS.get(reason, logging.INFO)
        if not logger.isEnabledFor(level):
            continue
        fields = {"correlation_id": correlation_id, "stop_reason": reason.name, **describe_output(output, call, now)}
        if output.error:
            cause = output.error.__cause__  # set only for unexpected errors
            logger.log(level, "input failed: %s", output.error, exc_info=cause, extra=fields)
        else:
            logger.log(level, "input done", extra=fields)


def get_finish_reason(output: Output) -> FinishReason:
    """The finish reason of an input whose call has ended; an unfinished input was cancelled."""
    if output.error:
        return FinishReason.ERROR
    return output.stop_reason if output.is_finished else FinishReason.CANCELLED


def describe_output(output: Output, call: Call, now: float) -> dict[str, str | int | float | None]:
    """Counts and times; None for stages that the input did not reach."""
    queue_s = inference_s = time_per_token_s = None
    if output.started_at is not None:
        queue_s = output.started_at - call.validated_at
        inference_s = (output.finished_at or now) - output.started_at
        time_per_token_s = inference_s / output.num_generated if output.num_generated else None
    times = {
        "validation_s": call.validated_at - call.started_at,
        "queue_s": queue_s,
        "inference_s": inference_s,
        "time_per_token_s": time_per_token_s,
        "total_s": now - call.started_at,
    }
    return {
        "kind": call.kind,
        "input_tokens": output.num_input,
        "generated_tokens": output.num_generated,
        **{name: None if value is None else round(value, 6) for name, value in times.items()},
    }
