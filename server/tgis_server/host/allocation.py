"""How libraries report that the host has no memory left."""

from __future__ import annotations

# Error texts of torch, C++ and oneDNN. "primitive descriptor" is how oneDNN reports operations it does not support.
ALLOCATION_FAILED = (
    r"not enough memory|can't allocate memory|std::bad_alloc|could not create a (?:primitive|memory)(?! desc)"
)
