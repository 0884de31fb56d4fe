"""From several variants of the same objects to a kustomize base and an overlay for each: what they have in common, and
what each has of its own. Pure functions on plain data; `generate_deployment.py` calls them.

The base has nothing that some variant lacks, so an overlay only adds. Comments stay with what they explain.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tgis_cli.manifest.explained import Explained, strip

IDENTITY = ("apiVersion", "kind")
# Lists that Kubernetes merges by a key of their items. All others are taken whole, which is right for any list.
MERGED = {
    "containers": "name",
    "initContainers": "name",
    "env": "name",
    "volumes": "name",
    "volumeMounts": "mountPath",
}
SERVICE_PORT = "targetPort"  # the ports of a Service have it, and are merged by their number


def make_base(objects: Sequence[Explained]) -> Explained:
    """What all variants of an object have in common."""
    common = find_common(objects)
    return common if isinstance(common, Explained) else Explained(common, "Without what differs among the overlays.")


def find_common(values: Sequence[Any], field: str = "") -> Any:
    """What all values of a field have in common; ``None``: nothing."""
    plain = [strip(value) for value in values]
    reasons = {value.why if isinstance(value, Explained) else None for value in values}
    common = find_common_part([unwrap(value) for value in values], plain, field)
    if common is not None and len(reasons) == 1 and (why := reasons.pop()):
        return Explained(common, why)
    return common


def find_common_part(values: Sequence[Any], plain: Sequence[Any], field: str) -> Any:
    if all(isinstance(value, dict) for value in values):
        shared = [key for key in values[0] if all(key in value for value in values)]
        parts = {key: find_common([value[key] for value in values], key) for key in shared}
        parts = {key: part for key, part in parts.items() if part is not None}
        return parts if parts or not any(plain) else None
    if key := find_key(field, plain[0]):
        named = [index_items(value, key) for value in values]
        shared = [name for name in named[0] if all(name in items for items in named)]
        parts = [find_common([items[name] for items in named]) for name in shared]
        return [part for part in parts if strip(part).keys() > {key}] or None
    return values[0] if all(value == plain[0] for value in plain) else None


def find_rest(value: Any, base: Any, field: str = "") -> Any:
    """What must be added to the base to get the value; ``None``: nothing."""
    if base is None or strip(value) == strip(base):
        return value if base is None else None
    rest = find_rest_part(unwrap(value), unwrap(base), field)
    return Explained(rest, value.why) if isinstance(value, Explained) else rest


def find_rest_part(value: Any, base: Any, field: str) -> Any:
    if isinstance(value, dict):
        parts = {key: find_rest(each, base.get(key), key) for key, each in value.items()}
        return {key: part for key, part in parts.items() if part is not None}
    key = find_key(field, strip(base))
    assert key is not None, f"find_common takes {field} whole, so there is no rest"
    items = index_items(base, key)
    rests = []
    for name, item in index_items(value, key).items():
        rest = find_rest(item, items.get(name))
        if rest is not None:
            whole = {key: unwrap(item)[key], **unwrap(rest)}
            rests.append(Explained(whole, rest.why) if isinstance(rest, Explained) else whole)
    return rests


def make_patch(value: Explained, base: Explained) -> Explained | None:
    """The strategic merge patch from the base to an object; ``None``: they are the same."""
    rest = find_rest(value, base)
    if rest is None:
        return None
    identity = {key: strip(value)[key] for key in IDENTITY} | {"metadata": {"name": name_of(value)}}
    why = value.why if value.why != base.why else "What the base leaves open."
    return Explained({**identity, **{key: part for key, part in rest.value.items() if key != "metadata"}}, why)


def name_of(value: Explained) -> str:
    return str(strip(value)["metadata"]["name"])


def find_key(field: str, items: Any) -> str | None:
    """By which items of a list are merged; ``None``: it is taken whole, or is no list."""
    if field == "ports" and all(SERVICE_PORT in item for item in items):
        return "port"
    return MERGED.get(field)


def index_items(items: Sequence[Any], key: str) -> dict[str, Any]:
    return {str(unwrap(item)[key]): item for item in items}


def unwrap(value: Any) -> Any:
    return value.value if isinstance(value, Explained) else value
