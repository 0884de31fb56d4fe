"""The pool of KV blocks, with reference counts and a prefix cache.

A block is in exactly one of two states::

    owned   ref count >= 1: in the block tables of that many sequences
    free    ref count 0: in the free list; if it has a key, its content is still valid and can be acquired again

The free list is in order of reuse: blocks without a key first, then the least recently used. A key names content: it is
the SHA-256 chain over the token ids up to and including the block (:func:`chain_key`), so equal keys mean equal content
and a lookup never compares tokens. Only full blocks and blocks of an encoder's output (``encoders.py``) have keys.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterable, Sequence

from tgis_server.wire.messages import Submit, TokenIds


def cache_root(submit: Submit, *, is_rope_long: bool) -> bytes:
    """The start of a chain: everything that keys and values depend on besides the tokens.

    Args:
        submit: the sequence.
        is_rope_long: whether LongRoPE uses its long factors.
    """
    return _digest(
        _adapter_digest(submit),
        submit.encoder_ids,
        b"%d %d" % (submit.num_virtual, submit.num_encoder_virtual),
        bytes([is_rope_long]),
        submit.cache_salt,
    )


def encoder_root(submit: Submit) -> bytes:
    """Everything that the keys and values of an encoder's output depend on."""
    return _digest(
        b"encoder", _adapter_digest(submit), submit.encoder_ids, b"%d" % submit.num_encoder_virtual, submit.cache_salt
    )


def chain_key(parent: bytes, token_ids: TokenIds) -> bytes:
    """The key of a full block with these tokens after the block whose key is ``parent``."""
    return hashlib.sha256(parent + token_ids.tobytes()).digest()


def _adapter_digest(submit: Submit) -> bytes:
    return submit.adapter.digest if submit.adapter else b""


def _digest(*parts: bytes | TokenIds) -> bytes:
    """Hash the parts, each with its length, so that their borders count."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(b"%d " % len(part))
        digest.update(part)
    return digest.digest()


class BlockPool:
    """Hands out block numbers ``0 .. num_blocks - 1``. Owned by the scheduler's memory.

    With ``keeps_free`` the content of free blocks can be found until they are reused.
    """

    def __init__(self, num_blocks: int, block_size: int, *, keeps_free: bool = True) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._keeps_free = keeps_free
        self._ref_counts = [0] * num_blocks
        self._keys: list[bytes | None] = [None] * num_blocks
        self._by_key: dict[bytes, int] = {}
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(num_blocks))

    @property
    def num_free(self) -> int:
        return len(self._free)

    @property
    def num_used(self) -> int:
        return self.num_blocks - len(self._free)

    @property
    def num_cached(self) -> int:
        """Blocks whose content :meth:`find_cached` can find, whether owned or free."""
        return len(self._by_key)

    def blocks_for(self, num_tokens: int) -> int:
        """Number of blocks for ``num_tokens`` tokens."""
        return -(-num_tokens // self.block_size)

    def find_cached(self, keys: Iterable[bytes]) -> list[int]:
        """The blocks of the longest cached prefix of a chain. Takes no reference."""
        found = []
        for key in keys:
            block = self._by_key.get(key)
            if block is None:
                break
            found.append(block)
        return found

    def num_obtainable(self, cached: Sequence[int]) -> int:
        """How many blocks :meth:`allocate` can provide after :meth:`acquire` of ``cached``."""
        return len(self._free) - sum(self._ref_counts[block] == 0 for block in cached)

    def acquire(self, blocks: Iterable[int]) -> None:
        """Take a reference to blocks that :meth:`find_cached` returned."""
        for block in blocks:
            if self._ref_counts[block] == 0:
                del self._free[block]
            self._ref_counts[block] += 1

    def allocate(self, count: int) -> list[int]:
        """Take ``count`` blocks for new content; their old content is forgotten."""
        assert count <= len(self._free), f"{count} KV blocks requested, {len(self._free)} free"
        taken = []
        for _ in range(count):
            block, _ = self._free.popitem(last=False)
            self._forget(block)
            self._ref_counts[block] = 1
            taken.append(block)
        return taken

    def release(self, blocks: Sequence[int]) -> None:
        """Release one reference to each block of a table.

        The last block is released first and so is reused first: without its prefix, the rest of a chain is useless.
        """
        for block in reversed(blocks):
            assert self._ref_counts[block] > 0, f"KV block {block} released twice"
            self._ref_counts[block] -= 1
            if self._ref_counts[block] == 0:
                self._free[block] = None
                if not self._keeps_free:
                    self._forget(block)
                if self._keys[block] is None:
                    self._free.move_to_end(block, last=False)

    def publish(self, block: int, key: bytes) -> None:
        """Make the content of an owned, full block findable, unless another block already has the same content."""
        if key not in self._by_key:
            self._forget(block)
            self._keys[block] = key
            self._by_key[key] = block

    def _forget(self, block: int) -> None:
        key = self._keys[block]
        if key is not None:
            del self._by_key[key]
            self._keys[block] = None
