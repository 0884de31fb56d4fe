"""A worker process of the load generator: ``python -m tgis_cli.bench.load.worker FD PARENT``.

FD is a socket to the load generator, whose process id is PARENT and with which it ends. It imports little, so that it
starts soon and stays small: no numpy, no command line.
"""

from __future__ import annotations

import asyncio
import gc
import os
import select
import sys
import time
import traceback
from multiprocessing.connection import Connection

from tgis_cli.bench.exact_loop import make_exact_loop
from tgis_cli.bench.http2.channel import Channel, NotConnectedError
from tgis_cli.bench.load.calls import SERVICE
from tgis_cli.bench.load.columns import WorkerHealth, read_peak_bytes
from tgis_cli.bench.load.orders import TICK_S, Cut, Done, Failed, GaveUp, Go, NotConnected, Ready, Setup, Share, Totals
from tgis_cli.bench.load.sender import Sender
from tgis_server.child import kill_with_parent
from tgis_server.errors import GroupFailed, TgisError

LAG_S = 0.01  # between samples of the event loop's lag


class Worker:
    def __init__(self, control: Connection, setup: Setup) -> None:
        self._control = control
        self._setup = setup
        self._channel = Channel(setup.endpoint, lambda reason: control.send(GaveUp(reason)))
        target = setup.endpoint
        self._blocks = {
            True: target.make_block(f"{SERVICE}GenerateStream"),
            False: target.make_block(f"{SERVICE}Generate"),
        }
        self._orders: asyncio.Queue[Share | Go | None] = asyncio.Queue()
        self._sender: Sender | None = None

    async def run(self) -> None:
        """Connect, then run one level after another until the load generator closes the socket."""
        try:
            await self._channel.connect()
        except NotConnectedError as error:
            self._control.send(NotConnected(str(error)))
            return
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: self._fail(context.get("exception")))
        loop.add_reader(self._control.fileno(), self._read_order)
        self._control.send(Ready())
        while isinstance(share := await self._orders.get(), Share):
            await self._run_level(share)
        self._channel.close()

    def _read_order(self) -> None:
        try:
            order = self._control.recv()
        except (EOFError, OSError):
            os._exit(0)  # whatever runs, nobody wants it any more
        if not isinstance(order, Cut):
            self._orders.put_nowait(order)
        elif self._sender is not None:
            self._sender.cut()

    async def _run_level(self, share: Share) -> None:
        setup = self._setup
        self._sender = sender = Sender(share, setup.feed, self._channel, self._blocks, has_stamps=setup.has_stamps)
        sender.prepare()
        gc.collect()
        gc.freeze()
        gc.disable()  # calls have no cycles; a collection would only delay what arrives
        self._control.send(Ready())
        go = await self._orders.get()
        if isinstance(go, Go):
            self._control.send(await self._measure(sender, go.at))
        self._sender = None
        gc.enable()
        gc.unfreeze()

    async def _measure(self, sender: Sender, at: float) -> Done:
        loop, health = asyncio.get_running_loop(), WorkerHealth(stamp_delay_s=sender.recorder.stamp_delay_s)
        num_queued, cpu_s = self._channel.num_queued, time.process_time()
        next_tick = at + TICK_S

        def sample(due: float) -> None:
            nonlocal next_tick
            if sender.done.done():
                return
            now = loop.time()
            health.loop_lag_s.append(now - due)
            if now >= next_tick:
                next_tick = max(next_tick + TICK_S, now)
                self._report(sender)
            loop.call_at(now + LAG_S, sample, now + LAG_S)

        sender.start(at)
        loop.call_at(at, sample, at)
        await sender.done
        health.cpu_s = time.process_time() - cpu_s
        health.wall_s = loop.time() - at
        health.num_tokens = sender.recorder.num_tokens
        health.num_queued = self._channel.num_queued - num_queued
        health.num_dropped = sender.recorder.num_dropped
        health.peak_bytes = read_peak_bytes()
        return Done(sender.recorder.columns, health)

    def _report(self, sender: Sender) -> None:
        """Send totals, unless the load generator does not read: waiting for it would delay the calls."""
        if select.select([], [self._control], [], 0)[1]:
            self._control.send(make_totals(sender))

    def _fail(self, error: BaseException | None) -> None:
        """An error in a callback, which asyncio would only log."""
        self._control.send(Failed(to_tgis_error(error)))
        os._exit(1)


def make_totals(sender: Sender) -> Totals:
    recorder = sender.recorder
    ttft_s, itl_s = recorder.take_samples()
    return Totals(
        sent=recorder.num_sent,
        in_flight=len(recorder.in_flight),
        streaming=sum(call.output_tokens > 0 for call in recorder.in_flight.values()),
        oldest_s=recorder.find_oldest(time.monotonic()),
        completed=recorder.num_completed,
        failed=recorder.num_failed,
        output_tokens=recorder.num_tokens,
        ttft_s=ttft_s,
        itl_s=itl_s,
    )


def to_tgis_error(error: BaseException | None) -> TgisError:
    """What the command says about it."""
    if isinstance(error, TgisError):
        return error
    frames = traceback.extract_tb(error.__traceback__ if error else None)
    place = f" ({os.path.basename(frames[-1].filename)}:{frames[-1].lineno})" if frames else ""
    return GroupFailed(f"A worker of the load generator failed: {type(error).__name__}: {error}{place}")


def main() -> None:
    control = Connection(int(sys.argv[1]))
    kill_with_parent(int(sys.argv[2]))
    try:
        setup = control.recv()
        with asyncio.Runner(loop_factory=make_exact_loop) as runner:
            runner.run(Worker(control, setup).run())
    except EOFError:
        pass  # the load generator is gone
    except Exception as error:  # noqa: BLE001  the load generator reports whatever ends a worker
        control.send(Failed(to_tgis_error(error)))


if __name__ == "__main__":
    main()
