"""The life of a shard process: serve probes, load, warm up, step, stop. Called by ``child.py``."""

from __future__ import annotations

import gc
import logging
import signal
import time
from collections.abc import Callable

from tgis_server.engines.api import ModelRunner
from tgis_server.engines.catalogue import get_engine
from tgis_server.engines.load import load_runner
from tgis_server.run import Run
from tgis_server.scheduler import Scheduler, SchedulerLimits
from tgis_server.shard.adapters import StagingFollower
from tgis_server.shard.follower import follow
from tgis_server.shard.guides import GrammarCompiler
from tgis_server.shard.inbox import Inbox, Stop
from tgis_server.shard.leader import Leader
from tgis_server.shard.servicer import Outbox, ShardServicer, start_server
from tgis_server.shard.status import ShardStatus
from tgis_server.threads import GRPC, POLLER, SESSION, ReservedThreads
from tgis_server.wire import shard_pb2 as pb
from tgis_server.wire.control import ControlPublisher, ControlSubscriber
from tgis_server.wire.endpoints import Endpoint
from tgis_server.wire.plans import PlanPublisher, PlanSubscriber

logger = logging.getLogger(__name__)

WARM_UP_TOKENS = 64  # enough to create the kernels for prefill and decode


def serve_shard(run: Run, rank: int) -> None:
    """Run one shard until SIGTERM.

    Raises:
        TgisError: with one sentence that explains why the shard cannot continue.
    """
    status = ShardStatus()
    ReservedThreads(POLLER + GRPC + SESSION).release()  # too tight a limit is an error here; later it would be a crash
    if rank == 0:
        _lead(run, status)
    else:
        _follow(run, rank, status)


def _lead(run: Run, status: ShardStatus) -> None:
    inbox, outbox = Inbox(), Outbox()
    followers = PlanPublisher(Endpoint.unix(run.plan_socket), run.num_shard - 1, run.config.step_timeout)
    control = ControlPublisher(Endpoint.unix(run.control_socket), run.num_shard - 1 if takes_adapters(run) else 0)
    server = start_server(run.shard_socket(0), ShardServicer(status, inbox, outbox))
    runner = load(run, 0, status)
    try:
        scheduler = Scheduler(
            SchedulerLimits.of(
                runner.caps,
                runner.capacity,
                max_batch_size=run.config.max_batch_size,
                max_batch_tokens=run.max_batch_tokens,
                prefix_cache=run.config.prefix_cache,
                target_s=run.config.target_inter_token_latency,
            )
        )
        leader = Leader(
            runner,
            scheduler,
            status,
            inbox,
            outbox,
            followers,
            is_alone=run.num_shard == 1,
            control=control,
            compile_grammar=GrammarCompiler(run.model_dir, runner.facts.vocab_size),
        )
        followers.wait_for_followers(run.config.startup_timeout)
        control.wait_for_followers(run.config.startup_timeout)
        status.begin_warm_up()
        capacity = runner.capacity
        max_tokens = min(
            capacity.max_sequence_length, capacity.num_blocks * capacity.block_size or capacity.max_padded_tokens
        )
        leader.warm_up(min(WARM_UP_TOKENS, run.max_batch_tokens, max_tokens - 1))
        defer_stop_signals(lambda: inbox.put(Stop()))
        status.begin_serving()
        leader.run()
        followers.end()
    finally:
        followers.close()
        control.close()
        runner.close()
        server.stop(grace=None)


def _follow(run: Run, rank: int, status: ShardStatus) -> None:
    server = start_server(run.shard_socket(rank), ShardServicer(status, None, None))
    runner = load(run, rank, status)
    try:
        plans = PlanSubscriber.connect(Endpoint.unix(run.plan_socket), run.config.startup_timeout)
        staging: StagingFollower | None = None
        if takes_adapters(run):
            control = ControlSubscriber.connect(Endpoint.unix(run.control_socket), run.config.startup_timeout)
            staging = StagingFollower(runner, control, rank)
            staging.start()
        defer_stop_signals(lambda: None)  # the leader stops first and ends the plans
        status.begin_warm_up()
        follow(runner, status, plans, staging)
    finally:
        runner.close()
        server.stop(grace=None)


def takes_adapters(run: Run) -> bool:
    """Whether there is a control channel. This is known before loading and is the same on all ranks."""
    return bool(get_engine(run.engine).adapters)


def defer_stop_signals(on_signal: Callable[[], None]) -> None:
    """At a stop signal, call ``on_signal`` instead of ending, because ending would lose answers in progress.

    Service managers signal every process of a group: the front-end drains, and the shards end after it.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: on_signal())


def load(run: Run, rank: int, status: ShardStatus) -> ModelRunner:
    """Load this rank's engine, and note in ``status`` how far it is and what was loaded."""
    started_at = time.monotonic()
    status.report_progress("importing libraries", 0, 0)
    runner = load_runner(run, rank, status.report_progress)
    gc.collect()
    gc.freeze()  # the collector need not scan what was loaded
    facts, capacity = runner.facts, runner.capacity
    status.info = pb.InfoReply(
        model_type=facts.model_type,
        dtype=facts.dtype,
        device=facts.device,
        vocab_size=facts.vocab_size,
        weight_bytes=facts.weight_bytes,
        num_blocks=capacity.num_blocks,
        block_size=capacity.block_size,
        max_sequence_length=capacity.max_sequence_length,
        notes=facts.notes,
        end_ids=facts.end_ids,
        kernels=facts.kernels,
    )
    logger.info("loaded in %.1f s", time.monotonic() - started_at)
    return runner
