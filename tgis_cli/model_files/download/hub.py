"""The model hub: what a repository holds, and its errors as sentences. The only door to huggingface_hub for metadata.

Downloading is ``download.py``'s. Endpoint and offline mode are the library's own: HF_ENDPOINT, HF_HUB_OFFLINE.
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
RETRY_DELAYS_S = (1.0, 2.0, 4.0)  # of the requests for metadata; transfers have their own patience
MAX_UNREACHED = 1  # where nobody answers: often there is no network at all, and each attempt may take its whole time
MAX_RETRY_AFTER_S = 120.0
TEMPORARY = frozenset({408, 429, 500, 502, 503, 504})
BROKEN_OFF = ("RemoteProtocolError", "ReadError", "WriteError")  # of the HTTP library
TELL_AFTER_S = 1.5  # that an answer is waited for
NUM_PARALLEL = 8
FIRST_BYTES = 64 << 10  # holds the header of most files

Result = TypeVar("Result")


class Hub:
    """The hub that the environment names, for one model.

    Args:
        tell: gets a sentence when a request is tried again.
    """

    def __init__(self, model: str, revision: str, token: HubToken, tell: Callable[[str], None]) -> None:
        self.model = model
        self.revision = revision
        self.token = token
        self._tell = tell
        self._is_over = threading.Event()

    def list_files(self) -> Listing:
        """What the repository holds at the revision.

        Raises:
            UsageError: the model's name cannot be one of the hub.
            ModelError: there is no such model or revision, or this user may not have it.
            HubError: the hub cannot be reached.
        """
        from huggingface_hub import HfApi

        def ask() -> Any:
            return HfApi(token=self.token).model_info(
                self.model, revision=self.revision, files_metadata=True, timeout=METADATA_TIMEOUT_S
            )

        waiting = threading.Timer(TELL_AFTER_S, self._tell, [f"asking {get_endpoint()} for {self.model}"])
        waiting.daemon = True
        waiting.start()
        try:
            info = self._request(ask)
        finally:
            waiting.cancel()
        if not COMMIT.fullmatch(info.sha or ""):
            raise HubError(f"The hub does not say which commit {self.revision} of {self.model} is: check HF_ENDPOINT.")
        files = [to_remote_file(sibling) for sibling in info.siblings or ()]
        if strange := [file for file in files if not file.is_safe]:
            raise HubError(f"{get_endpoint()} lists a file {strange[0].name!r}, which cannot be: do not use this hub.")
        return Listing(self.model, info.sha, tuple(files))

    def complete(self, files: list[RemoteFile], commit: str) -> list[RemoteFile]:
        """Ask for the sizes and digests that a listing lacks, as those of some mirrors do."""
        return self.map(lambda file: file if file.digest else self._complete(file, commit), files)

    def map(self, ask: Callable[[RemoteFile], Result], files: Iterable[RemoteFile]) -> list[Result]:
        """Ask for several files at once. When that ends early nobody waits to ask again."""
        with ThreadPoolExecutor(NUM_PARALLEL) as pool:
            try:
                return list(pool.map(ask, files))
            except BaseException:
                self._is_over.set()
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _complete(self, file: RemoteFile, commit: str) -> RemoteFile:
        from huggingface_hub import get_hf_file_metadata, hf_hub_url

        url = hf_hub_url(self.model, file.name, revision=commit)
        found = self._request(lambda: get_hf_file_metadata(url, token=self.token, timeout=METADATA_TIMEOUT_S))
        if found.size is None or not found.etag:
            raise HubError(f"The hub does not tell size and ETag of {file.name} in {self.model}: check HF_ENDPOINT.")
        return replace(file, size=found.size, digest=re.sub(r"^\.|[^\w.-]", "_", found.etag))

    def read_text(self, name: str, commit: str) -> str:
        """A small file's text, without writing it anywhere."""

        def ask() -> str:
            with open_content(self.model, name, commit, self.token, METADATA_TIMEOUT_S) as response:
                raise_for_status(response)
                return bytes(response.read()).decode(errors="replace")

        return str(self._request(ask))

    def read_header(self, file: RemoteFile, commit: str) -> bytes:
        """The length and the header of a safetensors file, or its beginning if that is no header."""
        head = self._read_range(file, commit, 0, min(FIRST_BYTES, file.size))
        end = 8 + int.from_bytes(head[:8], "little")
        if len(head) < end <= min(MAX_HEADER_BYTES, file.size):
            head += self._read_range(file, commit, len(head), end)
        return head[:end]

    def _read_range(self, file: RemoteFile, commit: str, start: int, end: int) -> bytes:
        wanted = f"bytes={start}-{end - 1}"

        def ask() -> bytes:
            with open_content(self.model, file.name, commit, self.token, METADATA_TIMEOUT_S, wanted) as response:
                raise_for_status(response)
                # A server that ignores ranges sends the whole file: leaving the block ends that.
                skipped = 0 if response.status_code == 206 else start
                return take_range(response.iter_raw(), skipped, end - start)

        return b"" if start == end else bytes(self._request(ask))

    def _request(self, ask: Callable[[], Any]) -> Any:
        """Ask, again after what is temporary."""
        num_failed = 0
        while True:
            try:
                return ask()
            except Exception as error:  # the library and what it stands on raise many unrelated types
                most = MAX_UNREACHED if is_network_error(error) else len(RETRY_DELAYS_S)
                if num_failed >= most or not is_temporary(error) or self._is_over.is_set():
                    raise explain_hub_error(error, self.model, self.revision, self.token) from error
                wait_s = max(RETRY_DELAYS_S[num_failed], retry_after_s(error))
                num_failed += 1
                self._tell(f"{describe_error(error)}; trying again in {format_seconds(wait_s)}")
                self._is_over.wait(wait_s)


@contextmanager
def open_content(
    model: str, name: str, commit: str, token: HubToken, timeout_s: float, wanted: str = ""
) -> Iterator[Any]:
    """The hub's answer to a request for a file, whatever it is; redirects to another host go without the token.

    Args:
        wanted: the part of it, as the header Range has it.
    """
    from huggingface_hub import hf_hub_url
    from huggingface_hub.utils import build_hf_headers, get_session

    # Not compressed, so that offsets are those of the content.
    headers = build_hf_headers(token=token) | {"Accept-Encoding": "identity"} | ({"Range": wanted} if wanted else {})
    url = hf_hub_url(model, name, revision=commit)
    with get_session().stream("GET", url, headers=headers, timeout=timeout_s) as response:
        yield response


def raise_for_status(response: Any) -> None:
    from huggingface_hub.utils import hf_raise_for_status

    hf_raise_for_status(response)


def take_range(pieces: Iterable[bytes], skipped: int, count: int) -> bytes:
    """``count`` bytes of a stream, after the first ``skipped``.

    Raises:
        ConnectionError: the stream ends before.
    """
    taken = bytearray()
    for piece in pieces:
        taken += piece
        if len(taken) >= skipped + count:
            return bytes(taken[skipped : skipped + count])
    raise ConnectionError("the answer ended early")


def to_remote_file(sibling: Any) -> RemoteFile:
    lfs = sibling.lfs
    digest = (lfs.sha256 if lfs else sibling.blob_id) or ""
    return RemoteFile(sibling.rfilename, sibling.size or 0, digest)


def get_endpoint() -> str:
    """For people: without a password that may be in it."""
    from huggingface_hub import constants

    return mask_credentials(constants.ENDPOINT)


def is_offline() -> bool:
    from huggingface_hub import constants

    return constants.HF_HUB_OFFLINE


def get_status(error: BaseException) -> int | None:
    """The HTTP status that an error carries, if it carries one."""
    return getattr(getattr(error, "response", None), "status_code", None)


def is_network_error(error: BaseException) -> bool:
    """Whether no answer came. The HTTP library's name depends on huggingface_hub's version."""
    from huggingface_hub.errors import OfflineModeIsEnabled

    if isinstance(error, OfflineModeIsEnabled) or get_status(error) is not None or is_bad_request(error):
        return False
    is_transport = any(kind.__name__ == "TransportError" for kind in type(error).__mro__)
    return is_transport or isinstance(error, ConnectionError | TimeoutError)


def is_bad_request(error: BaseException) -> bool:
    """Whether none can be made: HF_ENDPOINT cannot be an address, or the token is none."""
    return type(error).__name__ in ("UnsupportedProtocol", "InvalidURL", "LocalProtocolError")


def is_temporary(error: BaseException) -> bool:
    """Whether the same request may succeed soon."""
    return get_status(error) in TEMPORARY or is_network_error(error)


def retry_after_s(error: BaseException) -> float:
    """What the hub asks to wait, within reason; 0 if it does not ask."""
    headers = getattr(getattr(error, "response", None), "headers", {})
    found = re.fullmatch(r"\d+(\.\d+)?", headers.get("retry-after", ""))
    reset = re.search(r";\s*t=(\d+)", headers.get("ratelimit", ""))
    value = found[0] if found else reset[1] if reset else "0"
    return min(float(value), MAX_RETRY_AFTER_S)


def describe_error(error: BaseException) -> str:
    """An error in a few words, as the beginning of a sentence."""
    status = get_status(error)
    if status == 429:
        return "The hub wants fewer requests (HTTP 429)"
    if status is not None:
        return f"The hub answers HTTP {status}"
    if type(error).__name__ in BROKEN_OFF:
        return f"The connection to {get_endpoint()} broke off"
    text = str(error).strip().splitlines()
    reason = mask_credentials(text[0]) if text and text[0] else type(error).__name__
    return f"{get_endpoint()} does not answer ({reason})"


def explain_hub_error(error: BaseException, model: str, revision: str, token: HubToken) -> TgisError:
    """Whatever huggingface_hub raises, as a sentence with what to do."""
    from huggingface_hub import errors, get_token

    endpoint = get_endpoint()
    is_known = bool(token or (token is None and get_token()))
    access = "the token that is used" if is_known else "no token is set (HF_TOKEN, --token), and anonymous access"
    match error:
        case TgisError():
            return error
        case errors.OfflineModeIsEnabled():
            return HubError(
                f"{model} is not complete in the cache at {revision}, and HF_HUB_OFFLINE forbids asking {endpoint}: "
                "unset it, or bring the model with `tgis bundle` and `tgis unbundle`."
            )
        case errors.HFValidationError():
            return UsageError(f"{model!r} is neither a directory nor a name of the hub, such as org/model.")
        case errors.GatedRepoError():
            return ModelError(
                f"{model} is gated, and {access} does not open it. Accept its terms at {endpoint}/{model}, then use a "
                "token of that account."
            )
        case errors.DisabledRepoError():
            return ModelError(f"{model} has been disabled on {endpoint}: choose another model.")
        case errors.RevisionNotFoundError():
            return ModelError(f"{model} has no revision {revision}: {endpoint}/{model} lists its branches and tags.")
        case errors.RemoteEntryNotFoundError():
            return ModelError(f"A file of {model} at {revision} is gone from {endpoint}: try again.")
        case errors.RepositoryNotFoundError():
            return ModelError(
                f"{endpoint} has no model {model}, and there is no directory of that name: check it. If the model is "
                f"private, {access} does not show it."
            )
    if is_bad_request(error):
        return UsageError(
            f"No request can be made to {endpoint} ({type(error).__name__}): HF_ENDPOINT must be an address such as "
            "https://huggingface.co, and the token that its login has written must be one."
        )
    status = get_status(error)
    if status in (401, 403):
        return ModelError(f"{endpoint} refuses {model} (HTTP {status}), as {access} is not accepted. Check the token.")
    if status is not None and status not in TEMPORARY:
        return ModelError(f"{endpoint} refuses {model} (HTTP {status}): check the name, the revision and HF_ENDPOINT.")
    if status is not None:
        return HubError(f"{describe_error(error)}, still after several attempts: run the command again later.")
    if is_network_error(error):
        return HubError(
            f"{describe_error(error)}: check the network and HTTPS_PROXY, name a mirror with HF_ENDPOINT, or bring the "
            "model with `tgis bundle` and `tgis unbundle`."
        )
    reason = f"{type(error).__name__}: {mask_credentials(str(error))}"
    return HubError(f"{endpoint} gave no usable answer ({reason}): check HF_ENDPOINT.")
