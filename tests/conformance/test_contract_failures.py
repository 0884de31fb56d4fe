"""A step that runs out of memory, and what a server keeps to itself. Deaths of processes are tested elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from contract_api import Api, Frame, Refusal, exactly, merged, reason, row
from contract_metrics import Samples


@dataclass(frozen=True)
class OutOfMemory:
    """A stream was running when the inputs of a batch did not fit into memory."""

    stream: Frame
    batch: Refusal
    later: Frame
    metrics: Samples
    alone: Frame  # the answer that the stream gets without the accident


@pytest.fixture(scope="module")
def accident(failing: Api) -> OutOfMemory:
    stream = failing.open_stream("runs", generated_tokens=True, **exactly(3))  # a frame for every token
    next(stream)
    first = next(stream)  # the first step is over and the second is under way: the batch joins in the third
    batch = failing.refusal("a", "b", **exactly(2))
    rest = merged([first, *stream])
    later = failing.answer("a", **exactly(1))
    metrics = failing.settled_metrics()
    alone = failing.answer("runs", "stream", **exactly(3))
    return OutOfMemory(rest, batch, later, metrics, alone)


@row("failure-out-of-memory-status")
def test_inputs_that_do_not_fit_into_memory_are_refused_as_a_whole(accident: OutOfMemory) -> None:
    text = "Request failed during generation: GPU out of memory"

    assert accident.batch == Refusal("RESOURCE_EXHAUSTED", text)


@row("failure-out-of-memory-neighbours")
def test_a_running_stream_continues(accident: OutOfMemory) -> None:
    assert (reason(accident.stream), accident.stream.generated_token_count) == ("MAX_TOKENS", 3)
    assert accident.stream.text == accident.alone.text


@row("failure-out-of-memory-later-calls")
def test_the_server_continues_to_answer(accident: OutOfMemory) -> None:
    assert accident.later.generated_token_count == 1


@pytest.mark.parametrize(
    ("name", "labels", "expected"),
    [
        pytest.param(name, labels, expected, id="-".join(["metrics", name, *labels.values()]))
        for name, labels, expected in (
            ("tgi_request_failure", {"err": "generate"}, 1),
            ("tgi_request_success", {"stop_reason": "MAX_TOKENS", "kind": "batch"}, 0),
            ("tgi_request_success", {"stop_reason": "MAX_TOKENS", "kind": "stream"}, 1),
            ("tgi_batch_inference_failure", {"method": "prefill", "reason": "oom"}, 1),
            ("tgi_queue_size", {}, 0),
            ("tgi_batch_current_size", {}, 0),
        )
    ],
)
def test_the_metrics_show_the_failure(accident: OutOfMemory, name: str, labels: dict[str, str], expected: int) -> None:
    assert accident.metrics.get(name, **labels) == expected


@row("logs-hold-no-prompts-and-no-outputs")
def test_prompts_and_outputs_are_not_logged(recital: Api, launched: dict[str, Any]) -> None:
    recital.answer("zanzibar A")
    recital.refusal("zanzibar A", temperature=-1.0)

    logs = [(one.base / "output").read_text() for one in launched.values()]

    assert all("zanzibar" not in log and "old duck" not in log for log in logs)
    assert all("Ready" in log for log in logs)
