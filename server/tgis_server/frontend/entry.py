"""The life cycle of the front-end process: bind, wait for the engine, serve, drain, stop. Called by ``child.py``."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tgis_server import __version__
from tgis_server.errors import PeerLost, Unavailable
from tgis_server.frontend.generation import GenerationService
from tgis_server.frontend.grpc_api.server import PublicServer
from tgis_server.frontend.grpc_api.service import GenerationServicer
from tgis_server.frontend.launcher_socket import LauncherServer
from tgis_server.frontend.metrics import Metrics
from tgis_server.frontend.output import TextSettings
from tgis_server.frontend.permits import Admission
from tgis_server.frontend.router import Router
from tgis_server.frontend.shard_health import GroupHealth
from tgis_server.frontend.state import ServerState
from tgis_server.frontend.text import PieceDecoder, Tokenizer, load_vocabulary
from tgis_server.frontend.tracing import Tracing
from tgis_server.frontend.transport.floods import watch_connections
from tgis_server.frontend.transport.patience import Patience
from tgis_server.frontend.transport.tls import Tls
from tgis_server.frontend.validation import RequestLimits
from tgis_server.host.descriptors import MaxConnections, raise_limit
from tgis_server.host.races import end_with_first, run_before
from tgis_server.options import Fault
from tgis_server.run import Run
from tgis_server.run.phases import Phases
from tgis_server.threads import GRPC, HELPER, LANES, LAUNCHER_SERVER, POLLER, ReservedThreads
from tgis_server.wire.link import EngineInfo, EngineLink, GrpcLink
from tgis_server.words.processes import FRONTEND, LAUNCHER

logger = logging.getLogger(__name__)

FINAL_STATUS_S = 0.5  # time for calls in flight to receive their final status
# When a shard is lost, the launcher knows the cause better than the other processes. How long to wait for the cause:
CAUSE_WAIT_S = 0.5  # before calls in flight are ended
MAX_LINGER_S = 1.5  # in total, before this process ends


def serve(run: Run) -> None:
    """Run the front-end until SIGTERM, then drain; SIGINT ends it at once, even during a drain.

    Raises:
        UsageError: a port is in use, or the TLS files are unusable.
        ModelError: the tokenizer is unusable.
        PeerLost: a shard died or hung; calls in flight have received their status.
    """
    phases = Phases()
    phases.enter("loading the tokenizer")
    fault = Fault.of(run.config.fault, FRONTEND)
    if fault:
        fault.reach("start")
    reserved = ReservedThreads(POLLER + GRPC + LAUNCHER_SERVER + HELPER + LANES * run.tokenization_workers)
    tokenizer, pieces = load_vocabulary(
        run.model_dir, run.tokenization_workers, output_special_tokens=run.config.output_special_tokens
    )
    phases.enter("opening the ports")
    reserved.release()
    asyncio.run(_serve(run, phases, tokenizer, pieces))


async def _serve(run: Run, phases: Phases, tokenizer: Tokenizer, pieces: PieceDecoder) -> None:
    link = GrpcLink(run.shard_socket(0))
    shards = GroupHealth([run.shard_socket(rank) for rank in range(run.num_shard)], run.config.step_timeout)
    frontend = Frontend(run, ServerState(phases, shards.describe), tokenizer, pieces, link, shards)
    loop = asyncio.get_running_loop()
    loop.set_default_executor(ThreadPoolExecutor(HELPER, thread_name_prefix="helper"))
    loop.add_signal_handler(signal.SIGTERM, frontend.request_stop)
    loop.add_signal_handler(signal.SIGINT, frontend.request_immediate_stop)
    try:
        await frontend.run()
    finally:
        await link.close()
        tokenizer.close()


class Frontend:
    """Owns the servers and decides when they serve, drain and stop."""

    def __init__(
        self,
        run: Run,
        state: ServerState,
        tokenizer: Tokenizer,
        pieces: PieceDecoder,
        link: EngineLink,
        shards: GroupHealth,
    ) -> None:
        from tgis_server.frontend.http_api.server import HttpServer  # aiohttp is the slowest import of all

        config = run.config
        self.state = state
        self.metrics = Metrics(
            max_sequence_length=run.max_sequence_length,
            max_new_tokens=config.max_new_tokens,
            max_batch_size=config.max_batch_size,
        )
        self._run = run
        self._tokenizer = tokenizer
        self._link = link
        self._shards = shards
        self._text_settings = TextSettings(pieces, tokenizer.get_piece)
        self._router = Router(link, self.metrics)
        admission = Admission(config.max_concurrent_requests)
        endpoint = config.otlp_endpoint
        self._tracing = Tracing(endpoint, config.otlp_service_name) if endpoint else None
        fault = Fault.of(config.fault, FRONTEND)
        self._patience = Patience(config.send_timeout, self.metrics)
        self._servicer = GenerationServicer(self.state, admission, self.metrics, self._patience, self._tracing, fault)
        max_connections = MaxConnections.of(raise_limit())
        self._public = PublicServer(config, self.state, self._servicer, self._patience, max_connections.grpc)
        self._launcher = LauncherServer(run.frontend_socket, self.state, self.end)
        self._http = HttpServer(run, self.state, self.metrics, self._patience, max_connections.http)
        self.metrics.read_state(
            num_calls=lambda: self.state.num_calls,
            num_permits=lambda: admission.num_held,
            num_bytes_held=lambda: self._patience.num_bytes_held,
            num_unread=lambda: self._patience.num_waiting,
            is_ready=lambda: self.state.is_serving,
            is_draining=lambda: self.state.is_draining,
            max_permits=config.max_concurrent_requests,
        )
        self.metrics.read_processes(lambda: {LAUNCHER: os.getppid(), FRONTEND: os.getpid(), **shards.pids()})
        self._stop_requested = asyncio.Event()
        self._hurry_requested = asyncio.Event()
        self._group_ending = asyncio.Event()

    def request_stop(self) -> None:
        """Start draining. Idempotent: the launcher and a service manager may both request it."""
        self._stop_requested.set()

    def request_immediate_stop(self) -> None:
        """End now, even with calls in flight."""
        self._hurry_requested.set()
        self._stop_requested.set()

    def end(self, cause: str) -> None:
        """The launcher is ending the group: tell probes and calls the cause until it ends this process too."""
        if not self._group_ending.is_set():
            self._group_ending.set()
            self._stop_requested.clear()  # earlier requests are superseded
            self.state.fail(cause)
            self._router.lose_engine(cause)

    async def run(self) -> None:
        """Run until a drain has ended or the launcher shuts down the group. Raises the errors of :func:`serve`."""
        self.metrics.name_server(model=self._run.model_id, mode=self._run.label, version=__version__)
        try:
            await self._bind()
            try:
                await self._serve_until_stopped()
                if not self._group_ending.is_set():
                    await self._end_calls()
            except Exception as error:
                await self._fail(error)
                if not self._group_ending.is_set():
                    raise
            if self._group_ending.is_set():
                await self._stop_requested.wait()
        finally:
            await self._http.stop()
            await self._public.stop(FINAL_STATUS_S)
            await self._launcher.stop()
            if self._tracing:
                self._tracing.close()
        logger.info("stopped")

    async def _bind(self) -> None:
        """Bind the ports first: a port in use should be reported before a model is loaded."""
        if tls := Tls.load(self._run.config):
            self.metrics.read_certificate(str(tls.path), tls.get_expiry)
        self.state.grpc_port = await self._public.start(tls)
        self.state.http_port = await self._http.start(tls)
        await self._launcher.start()
        self.state.start_phases.enter("waiting for the shards")
        host = self._run.config.host
        logger.info("listening: gRPC %s:%d, HTTP %s:%d", host, self.state.grpc_port, host, self.state.http_port)

    async def _serve_until_stopped(self) -> None:
        """Serve and drain while the shards are watched; the first task to end determines the outcome."""
        work = {
            "life": self._live(),
            "shard-health": self._shards.run(),
            "patience": self._patience.run(),
            "watch-connections": self._watch_connections(),
            "wait-for-end": self._group_ending.wait(),
        }
        await end_with_first({asyncio.create_task(one, name=name) for name, one in work.items()})

    async def _watch_connections(self) -> None:
        grpc_port, http_port = self.state.grpc_port, self.state.http_port
        ports = {grpc_port: self._public.port_watch, http_port: self._http.port_watch}
        await watch_connections(ports, self._public.accounts, grpc_port, self.metrics.count_abort)

    async def _live(self) -> None:
        stop = asyncio.create_task(self._stop_requested.wait(), name="wait-for-stop")
        if not await run_before(stop, self._shards.wait_until_serving()):
            return
        try:
            info = await self._link.info()
        except Unavailable as error:
            raise PeerLost(str(error)) from error
        reader = asyncio.create_task(self._router.run(), name="read-steps")
        await asyncio.sleep(0)  # lets the reader connect before the first call
        await self._start_serving(info)
        await end_with_first({reader, asyncio.create_task(self._drain_when_requested(), name="drain")})

    async def _start_serving(self, info: EngineInfo) -> None:
        config = self._run.config
        limits = RequestLimits.effective(info.max_sequence_length, config.max_new_tokens)
        if limits.max_new_tokens < config.max_new_tokens:
            logger.warning(
                "max_new_tokens lowered from %d to %d: input and output together can have at most %d tokens",
                config.max_new_tokens,
                limits.max_new_tokens,
                limits.max_sequence_length,
            )
        self.metrics.use_limits(
            max_sequence_length=limits.max_sequence_length,
            max_new_tokens=limits.max_new_tokens,
            num_blocks=info.num_blocks,
        )
        self._servicer.generation = GenerationService(
            limits=limits,
            vocab_size=info.vocab_size,
            end_ids=info.end_ids,
            default_include_stop=config.default_include_stop_seqs,
            tokenizer=self._tokenizer,
            text_settings=self._text_settings,
            router=self._router,
            metrics=self.metrics,
        )
        gc.collect()
        gc.freeze()  # what is loaded stays loaded: freezing it keeps full collections short and frequent
        self.state.start_serving()
        phases = {FRONTEND: self.state.start_phases.encode(), **self._shards.phases()}
        self.metrics.observe_start(self._run.launcher_phases, phases)
        label = f" ({self._run.label})" if self._run.label else ""
        logger.info("serving %s%s", self._run.model_id, label)

    async def _drain_when_requested(self) -> None:
        """Return when nothing is in flight any more, the time is up, or an immediate stop is requested."""
        await self._stop_requested.wait()
        config = self._run.config
        self.state.start_draining()
        logger.debug("draining; calls in flight: %d", self.state.num_calls)
        if await self._unless_hurried(asyncio.sleep(config.drain_delay)):
            self.state.stop_accepting()
            await self._unless_hurried(self.state.wait_until_idle(config.drain_timeout))

    async def _fail(self, error: Exception) -> None:
        """The engine is lost: end every call with a status that says so.

        If a peer was lost, wait briefly for the launcher's cause. Until then, probes report what is known here.
        """
        if self._group_ending.is_set():
            return
        text = str(error) or type(error).__name__
        self.state.fail(text)
        is_consequence = isinstance(error, PeerLost)
        if is_consequence:
            await self._wait_for_cause(CAUSE_WAIT_S)
        self._router.lose_engine(text)
        await self.state.wait_until_idle(FINAL_STATUS_S)
        if is_consequence:
            await self._wait_for_cause(MAX_LINGER_S - CAUSE_WAIT_S)

    async def _wait_for_cause(self, timeout_s: float) -> None:
        """Wait until the launcher sends the cause, the time is up or an immediate stop is requested."""
        await self._unless_hurried(asyncio.wait_for(self._group_ending.wait(), timeout_s))

    async def _unless_hurried(self, work: Coroutine[Any, Any, Any]) -> bool:
        """Do ``work`` unless an immediate stop is requested first. Return whether it was done."""
        hurry = asyncio.create_task(self._hurry_requested.wait(), name="wait-for-hurry")
        try:
            return await run_before(hurry, work)
        finally:
            hurry.cancel()

    async def _end_calls(self) -> None:
        """The drain has ended: end the calls that are still in flight; they get no answer."""
        self.state.stop_accepting()
        if self.state.num_calls:
            logger.warning("calls ended without an answer: %d", self.state.num_calls)
        self._router.refuse(Unavailable(self.state.text))
        await self.state.wait_until_idle(FINAL_STATUS_S)
