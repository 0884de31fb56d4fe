"""A leader in this process, behind a real socket, whose steps a test allows one by one."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from driving import VOCAB_SIZE
from frontends import Server, serving, until
from tgis_server.engines.api import Capacity, RunnerCaps
from tgis_server.engines.fake import FakeLaunched, FakeRunner
from tgis_server.options import Fault
from tgis_server.scheduler import Scheduler, SchedulerLimits
from tgis_server.shard.inbox import Inbox, Stop
from tgis_server.shard.leader import Leader
from tgis_server.shard.servicer import Outbox, ShardServicer, start_server
from tgis_server.shard.status import ShardStatus
from tgis_server.wire import shard_pb2 as pb
from tgis_server.wire.endpoints import Endpoint
from tgis_server.wire.link import GrpcLink
from tgis_server.wire.messages import StepPlan
from tgis_server.wire.plans import PlanPublisher

NUM_BLOCKS, BLOCK_SIZE = 512, 4


class SteppedRunner(FakeRunner):
    """Waits for a permit before each step, and fails in the steps that the test names."""

    def __init__(self, *, plan_ahead: bool) -> None:
        super().__init__(
            vocab_size=VOCAB_SIZE,
            capacity=Capacity(NUM_BLOCKS, BLOCK_SIZE, 10_000),
            caps=RunnerCaps(plan_ahead=plan_ahead),
        )
        self.plans: list[StepPlan] = []  # the last one waits for its permit unless it already has one
        self.faults: dict[int, str] = {}  # the kind of the ``Fault`` for each step that fails
        self.permits = threading.Semaphore(0)

    def launch(self, plan: StepPlan) -> FakeLaunched:
        self.plans.append(plan)
        self.permits.acquire()
        kind = self.faults.get(plan.step)
        self._fault = Fault("shard-0", kind, f"step{plan.step}") if kind else None
        return super().launch(plan)


@dataclass
class SteppedLeader:
    """A shard that runs in a thread instead of its own process."""

    runner: SteppedRunner
    scheduler: Scheduler
    leader: Leader
    inbox: Inbox
    error: Exception | None = None  # the error that ended the leader
    num_allowed: int = 0  # steps permitted

    async def wait_for_step(self) -> None:
        """Return when a step is waiting for its permit."""
        await until(lambda: len(self.runner.plans) > self.num_allowed)

    async def wait_for_message(self) -> None:
        """Wait until there is a message for the next step."""
        await until(lambda: self.inbox._queue.qsize())

    async def run_steps(self, count: int) -> None:
        """Permit steps; return when the next one waits, or when there is nothing to do."""
        self.num_allowed += count
        self.runner.permits.release(count)
        await until(lambda: len(self.runner.plans) > self.num_allowed or self.is_at_rest)

    @property
    def is_at_rest(self) -> bool:
        return self.error is not None or (self.scheduler.is_idle and not self.scheduler.has_news())

    def run(self) -> None:
        """What the main thread of a shard does."""
        try:
            self.leader.run()
        except Exception as error:  # noqa: BLE001  as at the boundary of a process
            self.error = error


@contextmanager
def leading(socket: Path, *, max_batch_size: int, max_batch_tokens: int, plan_ahead: bool) -> Iterator[SteppedLeader]:
    """Run one shard in a thread, built as in ``shard/entry.py``."""
    status, inbox, outbox = ShardStatus(), Inbox(), Outbox()
    runner = SteppedRunner(plan_ahead=plan_ahead)
    scheduler = Scheduler(SchedulerLimits(NUM_BLOCKS, BLOCK_SIZE, max_batch_size, max_batch_tokens))
    leader = Leader(runner, scheduler, status, inbox, outbox, PlanPublisher(Endpoint.unix(socket), 0), is_alone=True)
    stepped = SteppedLeader(runner, scheduler, leader, inbox)
    status.info = pb.InfoReply(vocab_size=VOCAB_SIZE, max_sequence_length=1000, num_blocks=NUM_BLOCKS)
    server = start_server(socket, ShardServicer(status, inbox, outbox))

    def live() -> None:
        stepped.run()
        server.stop(grace=None)

    thread = threading.Thread(target=live, name="leader")
    thread.start()
    try:
        yield stepped
    finally:
        runner.permits.release(100_000)
        inbox.put(Stop())
        thread.join(10)
        assert not thread.is_alive()


@asynccontextmanager
async def stepped(
    *, max_batch_size: int = 8, max_batch_tokens: int = 64, plan_ahead: bool = False, **options: object
) -> AsyncIterator[tuple[Server, SteppedLeader]]:
    """A ready front-end with a stepped leader; ``options`` are those of ``serving``."""
    with tempfile.TemporaryDirectory(prefix="t-") as directory:
        socket = Path(directory) / "leader.sock"
        sizes = {"max_batch_size": max_batch_size, "max_batch_tokens": max_batch_tokens}
        with leading(socket, plan_ahead=plan_ahead, **sizes) as leader:
            link = GrpcLink(socket)
            try:
                async with serving(link, **options) as server:
                    yield server, leader
            finally:
                await link.close()
