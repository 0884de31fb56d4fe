"""What was measured of the calls of one level: columns, so that 100,000 streamed calls fit in tens of megabytes."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

Doubles = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(slots=True)
class Records:
    """One element per call that was sent, in the order of ending. Times are seconds after the start of the level.

    Tokens that arrive in one message have arrived at one moment: the gaps between them are 0.
    """

    index: Ints  # in the feed
    due_s: Doubles  # the intended start: of the schedule or, in a closed loop, when the slot became free
    sent_s: Doubles  # when the request was handed to the socket; without a connection, when the call failed
    first_s: Doubles  # when the first generated token arrived; NaN without one, and for unary calls
    end_s: Doubles  # when the status arrived
    status: Ints  # gRPC code; CUT
    input_tokens: Ints  # as the server counted them, over all inputs
    output_tokens: Ints
    asked_input: Ints  # 0: not known
    asked_output: Ints  # 0: the model decides
    gap_s: npt.NDArray[np.float32]  # between tokens of a stream, of all calls end to end
    num_gaps: Ints  # of each call: max(0, output_tokens - 1) of a stream, 0 of a unary call
    texts: dict[int, str]  # by status other than OK: the first explanation that the server gave
    started_at: float = 0.0  # of the level, on the monotonic clock


@dataclass(slots=True)
class GeneratorHealth:
    """How well the generator did its own work, over all its processes."""

    workers: int
    send_lag_s: Doubles  # of each call that was sent: from its intended start until it was handed to the socket
    loop_lag_s: Doubles  # samples of how late the event loop ran a timer
    cpu_share: float  # of one core, of the busiest worker, over the level
    cpu_s: float  # over all workers
    num_tokens: int  # received
    peak_bytes: int  # resident memory of all processes, each at its peak
    num_queued: int = 0  # calls that waited because as many were in flight as the server allows on its connections
    num_dropped: int = 0  # calls that were due and could not be sent in time
    cut_reason: str = ""  # a sentence that says why the level was ended, if nobody asked for it
    stamp_delay_s: Doubles = field(default_factory=lambda: np.empty(0))  # null server: from its stamps to the arrivals
