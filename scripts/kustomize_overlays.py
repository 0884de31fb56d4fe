"""The patch of a kustomize overlay: the operations (RFC 6902) that turn an object of the base into the overlay's. Pure
functions on plain data; `generate_deployment.py` calls them.
"""

from __future__ import annotations

from typing import Any

from tgis_cli.manifest.explained import Explained, strip


def make_patch(before: Any, after: Any, path: str = "") -> list[Any]:
    """The operations from one value to another, with the reasons for the new one; empty if they are equal."""
    if strip(before) == strip(after):
        return []
    old, new = (each.value if isinstance(each, Explained) else each for each in (before, after))
    if isinstance(old, dict) and isinstance(new, dict):
        operations = [each for key in {**old, **new} for each in patch_field(old, new, key, path)]
    elif has_same_items(old, new):
        pairs = enumerate(zip(old, new, strict=True))
        operations = [each for index, pair in pairs for each in make_patch(*pair, f"{path}/{index}")]
    else:
        return [{"op": "replace", "path": path, "value": after}]
    if path and isinstance(after, Explained) and not isinstance(operations[0], Explained):
        operations[0] = Explained(operations[0], after.why)
    return operations


def patch_field(old: dict[str, Any], new: dict[str, Any], key: str, path: str) -> list[Any]:
    path = f"{path}/{key.replace('~', '~0').replace('/', '~1')}"
    if key not in new:
        return [{"op": "remove", "path": path}]
    if key not in old:
        return [{"op": "add", "path": path, "value": new[key]}]
    return make_patch(old[key], new[key], path)


def has_same_items(old: Any, new: Any) -> bool:
    """Whether both are lists of things with the same names, such as containers, which are patched one by one."""
    if not (isinstance(old, list) and isinstance(new, list)):
        return False
    names = [[each.get("name") if isinstance(each, dict) else None for each in strip(items)] for items in (old, new)]
    return names[0] == names[1] and None not in names[0]
