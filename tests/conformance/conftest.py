"""The contract of ``fmaas.GenerationService``, checked against a running server.

::

    pytest tests/conformance                                       starts `tgis launch --dtype float32` for itself, once
                                                                   per variant of contract_servers.py; -k demo-1 is one
    pytest tests/conformance --launch-options="--num-shard 2"      starts it once, with these options
    pytest tests/conformance --url HOST:PORT                       checks a server that is otherwise idle
        --http http://HOST:PORT                                    its metrics and health
        --model-dir DIR                                            the model's files, for comparison with transformers

Without a flag the environment decides: TGIS_CONFORMANCE_URL, _HTTP, _MODEL_DIR, _LAUNCH_OPTIONS. What cannot be checked
is skipped with the reason. Answers are compared token by token, so the server must compute in float32. If no address is
given, three more servers are started: one that recites stories known by hand, and two rehearsals, one of which is slow
while the other runs out of memory.
"""

from __future__ import annotations

import os
import shlex
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import contract_script
from contract_api import Api, exactly
from contract_servers import DEMO_MODEL, VARIANTS, Launched, launch

if TYPE_CHECKING:
    from contract_oracle import Oracle

OPTIONS = {
    "--url": "gRPC address of the server to check; without it one is started",
    "--http": "http://HOST:PORT of the same server",
    "--model-dir": "directory of the model that it serves",
    "--launch-options": "more options for the server that is started",
}
HERE = Path(__file__).parent
STARTED = pytest.StashKey[ExitStack]()
PROMPT = "Once upon a time"
PROMPTS = (PROMPT, "Hello", "Question: Where does the cat live?", "One sunny day", "Anna found a red ball in the")


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("conformance")
    for flag, help_text in OPTIONS.items():
        group.addoption(flag, help=f"{help_text} (else {environ_name(flag)})")


def environ_name(flag: str) -> str:
    return "TGIS_CONFORMANCE_" + flag.removeprefix("--").replace("-", "_").upper()


def option(config: pytest.Config, flag: str) -> str | None:
    """A flag, or else its environment variable. Flags are unknown unless the suite is named on the command line."""
    return config.getoption(flag, default=None) or os.environ.get(environ_name(flag)) or None


def server_options(directory: Path, more: list[str]) -> dict[str, list[str]]:
    """Options of the other servers, by name; ``directory`` holds the model that recites."""
    rehearsal = ["--rehearse", "--model-name", str(directory)]
    return {
        "recital": [
            *("--dtype", "float32", *more, "--model-name", str(directory)),
            *("--max-sequence-length", "19", "--default-include-stop-seqs", "false"),
        ],
        "slow": [
            *(*rehearsal, "--rehearse-step-ms", "20", "--output-special-tokens"),
            *("--max-batch-size", "1", "--max-concurrent-requests", "3"),
        ],
        "failing": [*rehearsal, "--rehearse-step-ms", "300", "--fault", "shard0:oom@step3"],
    }


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test of the server under test on every variant of the server that may make a difference."""
    if "server" in metafunc.fixturenames:
        is_given = option(metafunc.config, "--url") or option(metafunc.config, "--launch-options")
        own = metafunc.definition.get_closest_marker("asked_of")
        asked = own.args if own else getattr(metafunc.module, "ASKED_OF", VARIANTS)
        metafunc.parametrize("server", [pytest.param(None, id="given")] if is_given else asked, indirect=True)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "asked_of(*servers): the servers on which this row of the contract is checked")


@dataclass(frozen=True)
class Server:
    """The server under test."""

    grpc: str
    http: str | None
    model_dir: Path | None
    launched: Launched | None  # if it was started here


@pytest.fixture(scope="session")
def server(
    request: pytest.FixtureRequest, pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    given_dir = option(pytestconfig, "--model-dir")
    if url := option(pytestconfig, "--url"):
        http = (option(pytestconfig, "--http") or "").rstrip("/") or None
        yield Server(url, http, Path(given_dir) if given_dir else None, None)
        return
    if request.param:
        variant = VARIANTS[request.param]
        model_dir = variant.write_model(tmp_path_factory.mktemp(request.param))
        options = variant.options(model_dir)
    else:
        model_dir = Path(given_dir) if given_dir else DEMO_MODEL
        options = shlex.split(option(pytestconfig, "--launch-options") or "")
    with ExitStack() as stack:
        launched = launch("--dtype", "float32", *options)
        stack.callback(launched.wait_until_stopped)
        stack.callback(launched.ask_to_stop)
        end_with_the_last_test(pytestconfig, stack)
        facts = launched.wait_until_ready()
        yield Server(facts["grpc"], facts["http"], model_dir, launched)


@pytest.fixture(scope="session")
def launched(pytestconfig: pytest.Config) -> Iterator[dict[str, Launched]]:
    """The other servers that are started here, by name, while they start; none if the server to check is given."""
    if option(pytestconfig, "--url"):
        yield {}
        return
    more = shlex.split(option(pytestconfig, "--launch-options") or "")
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="t-")))
        contract_script.write_checkpoint(directory)
        servers = {name: launch(*options) for name, options in server_options(directory, more).items()}
        for server in servers.values():
            stack.callback(server.wait_until_stopped)
        for server in servers.values():
            stack.callback(server.ask_to_stop)  # all are asked before the first one is awaited
        end_with_the_last_test(pytestconfig, stack)
        yield servers


def end_with_the_last_test(config: pytest.Config, stack: ExitStack) -> None:
    """Stop servers after the last of these tests, not at the end of the session: other tests may follow."""
    config.stash.setdefault(STARTED, ExitStack()).callback(stack.close)


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    is_last = nextitem is None or HERE not in nextitem.path.parents
    if is_last and (stack := item.config.stash.get(STARTED, None)):
        stack.close()


@pytest.fixture(scope="session")
def connect(launched: dict[str, Launched]) -> Iterator[Callable[[str], Api]]:
    """Wait for a server of ours and connect to it."""
    with ExitStack() as stack:

        def connect_to(name: str) -> Api:
            if name not in launched:
                pytest.skip("needs a server with special options, not the one at --url")
            facts = launched[name].wait_until_ready()
            api = Api(facts["grpc"], facts["http"])
            stack.callback(api.close)
            return api

        yield connect_to


@pytest.fixture(scope="session")
def api(server: Server) -> Iterator[Api]:
    """The server under test."""
    api = Api(server.grpc, server.http)
    yield api
    api.close()


@pytest.fixture(scope="session")
def recital(connect: Callable[[str], Api]) -> Api:
    """A server whose outputs are known by hand. It has 19 tokens of context and excludes stop sequences by default."""
    return connect("recital")


@pytest.fixture(scope="session")
def slow(connect: Callable[[str], Api]) -> Api:
    """A rehearsal: 20 ms for a token, one sequence at a time, three permits, and special tokens in the text."""
    return connect("slow")


@pytest.fixture(scope="session")
def failing(connect: Callable[[str], Api]) -> Api:
    """A rehearsal with steps of 300 ms, the third of which runs out of memory. Only one test may use it."""
    return connect("failing")


@pytest.fixture(scope="session")
def model_dir(server: Server) -> Path:
    """The files of the model under test."""
    if not server.model_dir:
        pytest.skip("needs --model-dir")
    return server.model_dir


@pytest.fixture(scope="session")
def oracle(model_dir: Path) -> Oracle:
    """transformers with the same weights."""
    pytest.importorskip("transformers")
    from contract_oracle import Oracle

    return Oracle(model_dir)


@pytest.fixture(scope="session")
def prompt(api: Api) -> str:
    """A prompt that the model answers with at least fourteen tokens, without being told to."""
    for text in PROMPTS:
        if api.generate(text, max_new_tokens=14)[0].generated_token_count == 14:
            return text
    pytest.skip("the model ends every answer at once")


@pytest.fixture(scope="session")
def usual(api: Api) -> dict[str, int]:
    """Parameters of a short answer of known length."""
    return exactly(3)
