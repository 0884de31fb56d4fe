"""The life of the front-end process: bind, wait for the engine, serve, drain, stop. Called by ``child.py``."""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
from concurrent.futures import ThreadPoolExecutor

from tgis_server.errors import PeerLost, Unavailable
from tgis_server.frontend.admission import Admission
from tgis_server.frontend.generation import GenerationService
from tgis_server.frontend.grpc_api.requests import library_limit_bytes
from tgis_server.frontend.grpc_api.server import PublicServer, num_streams
from tgis_server.frontend.grpc_api.service import GenerationServicer
from tgis_server.frontend.launcher_socket import LauncherServer
from tgis_server.frontend.metrics.metrics import Metrics
from tgis_server.frontend.output import TextSettings
from tgis_server.frontend.router import Router
from tgis_server.frontend.state import ServerState
from tgis_server.frontend.text.detokenizer import PieceDecoder
from tgis_server.frontend.text.tokenizer import Tokenizer
from tgis_server.frontend.text.vocabulary import load_vocabulary
from tgis_server.frontend.tracing import Tracing
from tgis_server.frontend.transport.floods import PortWatch, watch_connections
from tgis_server.frontend.transport.patience import Patience
from tgis_server.frontend.transport.tls import Tls
from tgis_server.frontend.validation import Limits
from tgis_server.frontend.watch import Watch
from tgis_server.host.descriptors import MaxConnections, raise_limit
from tgis_server.host.races import end_with_first, run_before
from tgis_server.options import Fault
from tgis_server.run import Run
from tgis_server.run.phases import Phases
from tgis_server.threads import GRPC, HELPER, LANES, LAUNCHER_SERVER, POLLER, ReservedThreads
from tgis_server.wire.link import EngineInfo, EngineLink, GrpcLink
from tgis_server.words.processes import FRONTEND

logger = logging.getLogger(__name__)

LAST_WORDS_S = 0.5  # for calls in flight to get their status at the end
# The launcher knows better why a shard is gone than its peers do. It is waited for:
CAUSE_WAIT_S = 0.5  # by calls in flight
MAX_LINGER_S = 1.5  # by this process


def serve(run: Run) -> None:
    """Be the front-end until SIGTERM, then drain; SIGINT ends at once, with or without a drain under way.

    Raises:
        UsageError: a port is in use, or TLS files are not usable.
        ModelError: the tokenizer cannot be used.
        PeerLost: a shard died or hung; calls in flight got their status.
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
    watch = Watch([run.shard_socket(rank) for rank in range(run.num_shard)], run.config.step_timeout)
    frontend = Frontend(run, ServerState(phases, watch.describe), tokenizer, pieces, link, watch)
    loop = asyncio.get_running_loop()
    loop.set_default_executor(ThreadPoolExecutor(HELPER, thread_name_prefix="helper"))
    loop.add_signal_handler(signal.SIGTERM, frontend.ask_to_stop)
    loop.add_signal_handler(signal.SIGINT, frontend.ask_to_hurry)
    try:
        await frontend.run()
    finally:
        await link.close()
        tokenizer.close()


class Frontend:
    """Owns the servers and decides when they are ready, draining or at their end."""

    def __init__(
        self,
        run: Run,
        state: ServerState,
        tokenizer: Tokenizer,
        pieces: PieceDecoder,
        link: EngineLink,
        watch: Watch,
    ) -> None:
        from tgis_server.frontend.http_api.server import HttpServer  # aiohttp takes longer to import than all the rest

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
        self._watch = watch
        self._text_settings = TextSettings(pieces, tokenizer.get_piece)
        self._router = Router(link, self.metrics)
        admission = Admission(config.max_concurrent_requests)
        endpoint = config.otlp_endpoint
        self._tracing = Tracing(endpoint, config.otlp_service_name) if endpoint else None
        fault = Fault.of(config.fault, FRONTEND)
        self._patience = Patience(config.send_timeout, self.metrics)
        self._servicer = GenerationServicer(self.state, admission, self.metrics, self._patience, self._tracing, fault)
        self._max_connections = MaxConnections.of(raise_limit())
        self._public = PublicServer(config, self.state, self._servicer, self._patience, self._max_connections.grpc)
        self._launcher = LauncherServer(run.frontend_socket, self.state, self.end)
        self._http = HttpServer(run, self.state, self.metrics, self._patience, self._max_connections.http)
        self.metrics.read_state(
            num_calls=lambda: self.state.num_calls,
            num_permits=lambda: admission.num_held,
            num_bytes_held=lambda: self._patience.num_bytes_held,
            num_unread=lambda: self._patience.num_waiting,
            is_draining=lambda: self.state.is_draining,
        )
        self._stop_asked = asyncio.Event()
        self._hurry_asked = asyncio.Event()
        self._end_told = asyncio.Event()

    def ask_to_stop(self) -> None:
        """Begin to drain. Asking again changes nothing: launcher and service manager may both ask."""
        self._stop_asked.set()

    def ask_to_hurry(self) -> None:
        """End now, whatever is in flight."""
        self._hurry_asked.set()
        self._stop_asked.set()

    def end(self, cause: str) -> None:
        """The launcher ends the group: probes and calls are told why, until it ends this process too."""
        if not self._end_told.is_set():
            self._end_told.set()
            self._stop_asked.clear()  # what was asked before has been overtaken
            self.state.fail(cause)
            self._router.lose_engine(cause)

    async def run(self) -> None:
        """The whole life. Returns after a drain, or when the launcher ends the group; errors as for :func:`serve`."""
        self.metrics.name_server(model=self._run.model_id, mode=self._run.label)
        try:
            await self._bind()
            try:
                await self._serve_until_stopped()
                if not self._end_told.is_set():
                    await self._end_calls()
            except Exception as error:
                await self._fail(error)
                if not self._end_told.is_set():
                    raise
            if self._end_told.is_set():
                await self._stop_asked.wait()
        finally:
            await self._http.stop()
            await self._public.stop(LAST_WORDS_S)
            await self._launcher.stop()
            if self._tracing:
                self._tracing.close()
        logger.info("stopped")

    async def _bind(self) -> None:
        """Take the ports at once: that one is in use should be said before a model is loaded."""
        if tls := Tls.load(self._run.config):
            self.metrics.read_certificate(str(tls.path), tls.get_expiry)
        self.state.grpc_port = await self._public.start(tls)
        self.state.http_port = await self._http.start(tls)
        await self._launcher.start()
        self.state.start_phases.enter("waiting for the shards")
        host = self._run.config.host
        logger.info("listening: gRPC %s:%d, HTTP %s:%d", host, self.state.grpc_port, host, self.state.http_port)

    async def _serve_until_stopped(self) -> None:
        """Serve and drain while the shards are watched; the first thing that ends decides."""
        work = {
            "life": self._live(),
            "watch": self._watch.run(),
            "patience": self._patience.run(),
            "watch-connections": self._watch_connections(),
            "wait-for-end": self._end_told.wait(),
        }
        await end_with_first({asyncio.create_task(one, name=name) for name, one in work.items()})

    async def _watch_connections(self) -> None:
        config, most = self._run.config, self._max_connections
        max_streams = num_streams(config.max_concurrent_requests)

        def watch(max_connections: int) -> PortWatch:
            return PortWatch(
                max_connections, config.send_timeout, library_limit_bytes(config.max_request_bytes), 2 * max_streams
            )

        # Room is made before the library refuses new connections: whoever is silent for longest goes first. On the HTTP
        # port every new connection makes room at once; what is still at its TLS handshake only the kernel knows.
        ports = {self.state.grpc_port: watch(most.grpc * 9 // 10), self.state.http_port: watch(most.http)}
        accounts, count = self._public.accounts, self.metrics.count_abort
        await watch_connections(ports, accounts, self.state.grpc_port, count)

    async def _live(self) -> None:
        stop = asyncio.create_task(self._stop_asked.wait(), name="wait-for-stop")
        if not await run_before(stop, self._watch.wait_until_serving()):
            return
        try:
            info = await self._link.info()
        except Unavailable as error:
            raise PeerLost(str(error)) from error
        reader = asyncio.create_task(self._router.run(), name="read-steps")
        await asyncio.sleep(0)  # the reader connects before the first call may come
        await self._start_serving(info)
        await end_with_first({reader, asyncio.create_task(self._drain_when_asked(), name="drain")})

    async def _start_serving(self, info: EngineInfo) -> None:
        config = self._run.config
        limits = Limits.effective(info.max_sequence_length, config.max_new_tokens)
        if limits.max_new_tokens < config.max_new_tokens:
            logger.warning(
                "max_new_tokens lowered from %d to %d: input and output together have %d tokens",
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
        gc.freeze()  # what is loaded stays: full collections are short, and come before much garbage has gathered
        self.state.start_serving()
        phases = {FRONTEND: self.state.start_phases.encode(), **self._watch.phases()}
        self.metrics.observe_start(self._run.launcher_phases, phases)
        label = f" ({self._run.label})" if self._run.label else ""
        logger.info("serving %s%s", self._run.model_id, label)

    async def _drain_when_asked(self) -> None:
        """Returns when the drain is over: nothing in flight, out of time, or asked to hurry."""
        await self._stop_asked.wait()
        config = self._run.config
        self.state.start_draining()
        logger.debug("draining; calls in flight: %d", self.state.num_calls)
        hurry = asyncio.create_task(self._hurry_asked.wait(), name="wait-for-hurry")
        if await run_before(hurry, asyncio.sleep(config.drain_delay)):
            self.state.stop_accepting()
            await run_before(hurry, self.state.wait_until_idle(config.drain_timeout))
        hurry.cancel()

    async def _fail(self, error: Exception) -> None:
        """The engine is gone: every call gets its status. Where a peer is gone, the launcher may tell why meanwhile.

        Until then probes are told what is known here.
        """
        if self._end_told.is_set():
            return
        text = str(error) or type(error).__name__
        self.state.fail(text)
        is_consequence = isinstance(error, PeerLost)
        if is_consequence:
            await self._wait_for_cause(CAUSE_WAIT_S)
        self._router.lose_engine(text)
        await self.state.wait_until_idle(LAST_WORDS_S)
        if is_consequence:
            await self._wait_for_cause(MAX_LINGER_S - CAUSE_WAIT_S)

    async def _wait_for_cause(self, timeout_s: float) -> None:
        """Until the launcher tells why the group ends, but at most so long, and not if asked to hurry."""
        hurry = asyncio.create_task(self._hurry_asked.wait(), name="wait-for-hurry")
        await run_before(hurry, asyncio.wait_for(self._end_told.wait(), timeout_s))
        hurry.cancel()

    async def _end_calls(self) -> None:
        """The drain is over: what is still in flight ends without an answer."""
        self.state.stop_accepting()
        if self.state.num_calls:
            logger.warning("calls that end without an answer: %d", self.state.num_calls)
        self._router.refuse(Unavailable(self.state.text))
        await self.state.wait_until_idle(LAST_WORDS_S)
