"""Every generation call that is counted is counted out once, wherever its client leaves it."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Generator
from types import SimpleNamespace
from typing import Any

import grpc
import pytest

from frontends import Server, batch, run, serving, single, tokens
from links import FakeLink, count_up
from test_served_metrics import parse
from tgis_server.wire import generation_pb2 as pb

DETAILS = pb.ResponseOptions(input_tokens=True, generated_tokens=True, token_logprobs=True)


class CancelAt:
    """A coroutine that is cancelled when it waits for the n-th time; ``was_cancelled``: whether it got that far."""

    def __init__(self, work: Coroutine[Any, Any, Any], at: int) -> None:
        self._work = work
        self._at = at
        self.was_cancelled = False

    def __await__(self) -> Generator[Any, Any, Any]:
        awaited, error, num_waits = self._work, None, 0
        while True:
            try:
                waits_for = awaited.send(None) if error is None else awaited.throw(error)
            except StopIteration as end:
                return end.value
            num_waits += 1
            if num_waits - 1 == self._at:
                self.was_cancelled = True
                error = asyncio.CancelledError()
                continue
            try:
                yield waits_for
                error = None
            except BaseException as raised:  # noqa: BLE001  for the coroutine
                error = raised


class Client:
    """The context of a call; writes take a moment, and fail from a given frame on."""

    def __init__(self, fails_at: int = -1) -> None:
        self.num_written = 0
        self._fails_at = fails_at

    def invocation_metadata(self) -> tuple[()]:
        return ()

    def set_trailing_metadata(self, metadata: object) -> None:
        pass

    async def write(self, frame: pb.GenerationResponse) -> None:
        await asyncio.sleep(0)
        if self.num_written == self._fails_at:
            raise RuntimeError("the connection is gone")
        self.num_written += 1

    async def abort(self, status: grpc.StatusCode, details: str) -> None:
        await asyncio.sleep(0)
        raise grpc.aio.AbortError(details)

    def __getattr__(self, name: str) -> Any:
        """Stands in for everything else that a context has."""
        return lambda *_, **__: None


def count_outcomes(server: Server) -> SimpleNamespace:
    found = parse(server.frontend.metrics.to_text().decode())

    def total(name: str) -> float:
        return sum(value for key, value in found.items() if key.split("{")[0] == name)

    return SimpleNamespace(
        calls=total("tgi_request_count"), successes=total("tgi_request_success"), failures=total("tgi_request_failure")
    )


def serve(server: Server, kind: str, client: Client) -> Coroutine[Any, Any, Any]:
    servicer, params = server.frontend._servicer, {**tokens(3), "response": DETAILS}
    match kind:
        case "single":
            return servicer.Generate(batch("t1", **params), client)
        case "batch":
            return servicer.Generate(batch("t1", "t2", "t3", **params), client)
        case _:
            return servicer.GenerateStream(single("t1", **params), client)


async def end(call: Any) -> None:
    """Await a call, however it ends."""
    await asyncio.gather(asyncio.create_task(call), return_exceptions=True)


async def wait_for(call: CancelAt) -> None:
    await call


@pytest.mark.parametrize(("kind", "num_inputs"), [("single", 1), ("batch", 3), ("stream", 1)])
def test_a_call_that_is_cancelled_where_it_waits_is_counted_out_once(kind: str, num_inputs: int):
    async def test() -> None:
        async with serving(FakeLink(count_up)) as server:
            outcomes = []
            for at in range(100):
                before = count_outcomes(server)
                call = CancelAt(serve(server, kind, Client()), at)
                await end(wait_for(call))
                after = count_outcomes(server)
                outcomes.append((after.successes - before.successes, after.failures - before.failures))
                assert after.calls - before.calls == 1
                if not call.was_cancelled:
                    break

            assert len(outcomes) > 2
            assert outcomes[0] == (0, num_inputs)
            assert outcomes[-1] == (num_inputs, 0)
            assert all(0 in outcome and 1 <= sum(outcome) <= num_inputs for outcome in outcomes), outcomes

    run(test)


@pytest.mark.parametrize("fails_at", range(6))
def test_a_stream_that_cannot_be_written_is_counted_out_once(fails_at: int):
    async def test() -> None:
        async with serving(FakeLink(count_up)) as server:
            await end(serve(server, "stream", Client(fails_at)))

            found = count_outcomes(server)
            assert found.successes + found.failures == 1

    run(test)


def test_an_answer_that_cannot_be_built_is_a_failure_and_no_success(monkeypatch: pytest.MonkeyPatch):
    def fail(*_: object) -> None:
        raise RuntimeError("no answer")

    async def test() -> None:
        monkeypatch.setattr("tgis_server.frontend.grpc_api.service.render_parts", fail)
        async with serving(FakeLink(count_up)) as server:
            await end(serve(server, "batch", Client()))

            found = count_outcomes(server)
            assert (found.successes, found.failures) == (0, 1)

    run(test)
