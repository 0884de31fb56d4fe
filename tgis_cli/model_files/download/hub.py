"""Requests to the model hub through huggingface_hub, and its errors as sentences.

Large files are fetched by ``transfers.py``. The endpoint and offline mode are those of the library: HF_ENDPOINT,
HF_HUB_OFFLINE.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeVar

from tgis_cli.model_files.cache.listing import Listing, RemoteFile
from tgis_cli.model_files.cache.names import COMMIT
from tgis_cli.model_files.download.hub_token import HubToken
from tgis_cli.terminal.progress import format_seconds
from tgis_server.errors import HubError, ModelError, TgisError, UsageError
from tgis_server.model_files import MAX_HEADER_BYTES
from tgis_server.words.url_credentials import mask_credentials

METADATA_TIMEOUT_S = 10.0
RETRY_DELAYS_S = (1.0, 2.0, 4.0)  # for metadata; transfers have their own retries
MAX_UNREACHED = 1  # retries without any answer: there may be no network, and each attempt may take its full timeout
MAX_RETRY_AFTER_S = 120.0
TEMPORARY = frozenset({408, 429, 500, 502, 503, 504})
BROKEN_OFF = ("RemoteProtocolError", "ReadError", "WriteError")  # errors of the HTTP library
TELL_AFTER_S = 1.5  # until a notice that the hub is slow to respond
NUM_PARALLEL = 8
FIRST_BYTES = 64 << 10  # contains the whole header in most files

Result = TypeVar("Result")


class Hub:
    """The hub that the environment names, for one model.

    Args:
        tell: called with a sentence before a retry.
    """

    def __init__(self, model: str, revision: str, token: HubToken, tell: Callable[[str], None]) -> None:
        self.model = model
        self.revision = revision
        self.token = token
        self._tell = tell
        self._is_stopped = threading.Event()

    def list_files(self) -> Listing:
        """List the repository at the revision.

        Raises:
            UsageError: the model's name is not valid on the hub.
            ModelError: the model or revision does not exist, or this user has no access.
            HubError: the hub cannot be reached.
        """
        from huggingface_hub import HfApi

        def ask() -> Any:
            return HfApi(token=self.token).model_info(
                self.model, revision=self.revision, files_metadata=True, timeout=METADATA_TIMEOUT_S
            )

        notice = threading.Timer(TELL_AFTER_S, self._tell, [f"asking {get_endpoint()} for {self.model}"])
        notice.daemon = True
        notice.start()
        try:
            info = self._request(ask)
        finally:
            notice.cancel()
        if not COMMIT.fullmatch(info.sha or ""):
            raise HubError(f"The hub does not state the commit of {self.revision} in {self.model}: check HF_ENDPOINT.")
        files = [to_remote_file(sibling) for sibling in info.siblings or ()]
        if unsafe := [file for file in files if not file.is_safe]:
            raise HubError(f"{get_endpoint()} lists the unsafe file {unsafe[0].name!r}: do not use this hub.")
        return Listing(self.model, info.sha, tuple(files))

    def complete(self, files: list[RemoteFile], commit: str) -> list[RemoteFile]:
        """Request the sizes and digests that some mirrors omit from their listings."""
        return self.map(lambda file: file if file.digest else self._complete(file, commit), files)

    def map(self, ask: Callable[[RemoteFile], Result], files: Iterable[RemoteFile]) -> list[Result]:
        """Send requests for several files in parallel. The first failure ends all waits for retries."""
        with ThreadPoolExecutor(NUM_PARALLEL) as pool:
            try:
                return list(pool.map(ask, files))
            except BaseException:
                self._is_stopped.set()
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _complete(self, file: RemoteFile, commit: str) -> RemoteFile:
        from huggingface_hub import get_hf_file_metadata, hf_hub_url

        url = hf_hub_url(self.model, file.name, revision=commit)
        found = self._request(lambda: get_hf_file_metadata(url, token=self.token, timeout=METADATA_TIMEOUT_S))
        if found.size is None or not found.etag:
            raise HubError(
                f"The hub does not state the size and the ETag of {file.name} in {self.model}: check HF_ENDPOINT."
            )
        return replace(file, size=found.size, digest=re.sub(r"^\.|[^\w.-]", "_", found.etag))

    def read_text(self, name: str, commit: str) -> str:
        """The text of a small file, which is not stored."""

        def ask() -> str:
            with open_content(self.model, name, commit, self.token, METADATA_TIMEOUT_S) as response:
                raise_for_status(response)
                return bytes(response.read()).decode(errors="replace")

        return str(self._request(ask))

    def read_header(self, file: RemoteFile, commit: str) -> bytes:
        """Length and header of a safetensors file, or just its beginning if there is no header."""
        head = self._read_range(file, commit, 0, min(FIRST_BYTES, file.size))
        end = 8 + int.from_bytes(head[:8], "little")
        if len(head) < end <= min(MAX_HEADER_BYTES, file.size):
            head += self._read_range(file, commit, len(head), end)
        return head[:end]

    def _read_range(self, file: RemoteFile, commit: str, start: int, end: int) -> bytes:
        byte_range = f"bytes={start}-{end - 1}"

        def ask() -> bytes:
            with open_content(self.model, file.name, commit, self.token, METADATA_TIMEOUT_S, byte_range) as response:
                raise_for_status(response)
                # A server that ignores ranges sends the whole file, until the block is left.
                skipped = 0 if response.status_code == 206 else start
                return take_range(response.iter_raw(), skipped, end - start)

        return b"" if start == end else bytes(self._request(ask))

    def _request(self, ask: Callable[[], Any]) -> Any:
        """Send a request, retrying after temporary errors."""
        num_failed = 0
        while True:
            try:
                return ask()
            except Exception as error:  # the library and its dependencies raise many unrelated types
                most = MAX_UNREACHED if is_network_error(error) else len(RETRY_DELAYS_S)
                if num_failed >= most or not is_temporary(error) or self._is_stopped.is_set():
                    raise explain_hub_error(error, self.model, self.revision, self.token) from error
                wait_s = max(RETRY_DELAYS_S[num_failed], retry_after_s(error))
                num_failed += 1
                self._tell(f"{describe_error(error)}; trying again in {format_seconds(wait_s)}")
                self._is_stopped.wait(wait_s)


@contextmanager
def open_content(
    model: str, name: str, commit: str, token: HubToken, timeout_s: float, byte_range: str = ""
) -> Iterator[Any]:
    """Request a file and yield the response, whatever its status. Redirects to another host omit the token.

    Args:
        byte_range: value of the Range header; empty: the whole file.
    """
    from huggingface_hub import hf_hub_url
    from huggingface_hub.utils import build_hf_headers, get_session

    # Uncompressed, so that offsets refer to the content.
    headers = (
        build_hf_headers(token=token) | {"Accept-Encoding": "identity"} | ({"Range": byte_range} if byte_range else {})
    )
    url = hf_hub_url(model, name, revision=commit)
    with get_session().stream("GET", url, headers=headers, timeout=timeout_s) as response:
        yield response


def raise_for_status(response: Any) -> None:
    from huggingface_hub.utils import hf_raise_for_status

    hf_raise_for_status(response)


def take_range(pieces: Iterable[bytes], skipped: int, count: int) -> bytes:
    """``count`` bytes of a stream, after the first ``skipped``.

    Raises:
        ConnectionError: the stream ends too early.
    """
    taken = bytearray()
    for piece in pieces:
        taken += piece
        if len(taken) >= skipped + count:
            return bytes(taken[skipped : skipped + count])
    raise ConnectionError("the response ended early")


def to_remote_file(sibling: Any) -> RemoteFile:
    lfs = sibling.lfs
    digest = (lfs.sha256 if lfs else sibling.blob_id) or ""
    return RemoteFile(sibling.rfilename, sibling.size or 0, digest)


def get_endpoint() -> str:
    """The hub's address for messages, without credentials."""
    from huggingface_hub import constants

    return mask_credentials(constants.ENDPOINT)


def is_offline() -> bool:
    from huggingface_hub import constants

    return constants.HF_HUB_OFFLINE


def get_status(error: BaseException) -> int | None:
    """The HTTP status of an error, if any."""
    return getattr(getattr(error, "response", None), "status_code", None)


def is_network_error(error: BaseException) -> bool:
    """Whether no response arrived. Which HTTP library is used depends on the version of huggingface_hub."""
    from huggingface_hub.errors import OfflineModeIsEnabled

    if isinstance(error, OfflineModeIsEnabled) or get_status(error) is not None or is_bad_request(error):
        return False
    is_transport = any(kind.__name__ == "TransportError" for kind in type(error).__mro__)
    return is_transport or isinstance(error, ConnectionError | TimeoutError)


def is_bad_request(error: BaseException) -> bool:
    """Whether the request cannot be made: HF_ENDPOINT is not an address, or the token is malformed."""
    return type(error).__name__ in ("UnsupportedProtocol", "InvalidURL", "LocalProtocolError")


def is_temporary(error: BaseException) -> bool:
    """Whether the same request may succeed soon."""
    return get_status(error) in TEMPORARY or is_network_error(error)


def retry_after_s(error: BaseException) -> float:
    """The delay that the hub requests, capped; 0 if none."""
    headers = getattr(getattr(error, "response", None), "headers", {})
    found = re.fullmatch(r"\d+(\.\d+)?", headers.get("retry-after", ""))
    reset = re.search(r";\s*t=(\d+)", headers.get("ratelimit", ""))
    value = found[0] if found else reset[1] if reset else "0"
    return min(float(value), MAX_RETRY_AFTER_S)


def describe_error(error: BaseException) -> str:
    """An error in a few words, to start a sentence."""
    status = get_status(error)
    if status == 429:
        return "The hub limits the request rate (HTTP 429)"
    if status is not None:
        return f"The hub returned HTTP {status}"
    if type(error).__name__ in BROKEN_OFF:
        return f"The connection to {get_endpoint()} was interrupted"
    text = str(error).strip().splitlines()
    reason = mask_credentials(text[0]) if text and text[0] else type(error).__name__
    return f"{get_endpoint()} does not respond ({reason})"


def explain_hub_error(error: BaseException, model: str, revision: str, token: HubToken) -> TgisError:
    """Turn any error of huggingface_hub into a sentence with advice."""
    from huggingface_hub import errors, get_token

    endpoint = get_endpoint()
    has_token = bool(token or (token is None and get_token()))
    access = "the token in use" if has_token else "no token is set (HF_TOKEN, --token), and anonymous access"
    match error:
        case TgisError():
            return error
        case errors.OfflineModeIsEnabled():
            return HubError(
                f"{model} is not complete in the cache at {revision}, and HF_HUB_OFFLINE forbids asking {endpoint}: "
                "unset that variable, or transfer the model with `tgis bundle` and `tgis unbundle`."
            )
        case errors.HFValidationError():
            return UsageError(f"{model!r} is neither a directory nor a valid name on the hub, such as org/model.")
        case errors.GatedRepoError():
            return ModelError(
                f"{model} is gated, and {access} gives no access. Accept its terms at {endpoint}/{model}, then use a "
                "token of the account that accepted them."
            )
        case errors.DisabledRepoError():
            return ModelError(f"{model} has been disabled on {endpoint}: choose another model.")
        case errors.RevisionNotFoundError():
            return ModelError(f"{model} has no revision {revision}: {endpoint}/{model} lists its branches and tags.")
        case errors.RemoteEntryNotFoundError():
            return ModelError(f"A file of {model} at {revision} has disappeared from {endpoint}: try again.")
        case errors.RepositoryNotFoundError():
            return ModelError(
                f"{endpoint} has no model {model}, and there is no directory of that name: check the name. If the "
                f"model is private, {access} does not reveal it."
            )
    if is_bad_request(error):
        return UsageError(
            f"No request can be made to {endpoint} ({type(error).__name__}): HF_ENDPOINT must be an address such as "
            "https://huggingface.co, and the stored login token must be valid."
        )
    status = get_status(error)
    if status in (401, 403):
        return ModelError(f"{endpoint} refuses {model} (HTTP {status}), as {access} is not accepted. Check the token.")
    if status is not None and status not in TEMPORARY:
        return ModelError(f"{endpoint} refuses {model} (HTTP {status}): check the name, the revision and HF_ENDPOINT.")
    if status is not None:
        return HubError(f"{describe_error(error)}, even after several attempts: run the command again later.")
    if is_network_error(error):
        return HubError(
            f"{describe_error(error)}: check the network and HTTPS_PROXY, name a mirror with HF_ENDPOINT, or transfer "
            "the model with `tgis bundle` and `tgis unbundle`."
        )
    reason = f"{type(error).__name__}: {mask_credentials(str(error))}"
    return HubError(f"{endpoint} gave no usable response ({reason}): check HF_ENDPOINT.")
