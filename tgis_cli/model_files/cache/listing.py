"""The files of a repository at one commit, as the hub lists them and the cache remembers them."""

from __future__ import annotations

from dataclasses import dataclass

from tgis_cli.model_files.cache.names import DIGEST, GIT_SHA1, SHA256, is_safe_path


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """One file of a repository."""

    name: str  # path in the repository
    size: int
    digest: str  # SHA-256 of the content, or the SHA-1 of its git blob; names the file among the cache's blobs

    @property
    def is_verifiable(self) -> bool:
        """Whether the digest can be computed from the content. Some mirrors send arbitrary tags."""
        return bool(SHA256.fullmatch(self.digest) or GIT_SHA1.fullmatch(self.digest))

    @property
    def is_safe(self) -> bool:
        """Whether name and digest are safe to use as file names."""
        return is_safe_path(self.name) and (not self.digest or DIGEST.fullmatch(self.digest) is not None)


@dataclass(frozen=True, slots=True)
class Listing:
    """All files of a repository at a commit."""

    model: str
    commit: str
    files: tuple[RemoteFile, ...]
