"""Whether a cluster would accept objects, judged without one: their schemas, and what schemas do not say.

A cluster silently drops unknown fields of custom resources, and accepts references to ports or volumes that do not
exist; here both are errors. CEL rules of custom resources are not evaluated.
"""

from __future__ import annotations

import functools
import json
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

Object = dict[str, Any]

SCHEMAS = Path(__file__).parent / "schemas"
KUBERNETES = kubernetes_validate.latest_version()
SUB_SCHEMAS = ("items", "additionalProperties")  # keywords whose value is a schema; `properties` has one for each name
QUANTITY = re.compile(r"([0-9]+(?:\.[0-9]+)?)(m|[kKMGTPE]i?)?")
UNITS = {"": 1.0, "m": 1e-3} | {
    f"{letter}{i}": (1024 if i else 1000) ** power for power, letter in enumerate("kMGTPE", 1) for i in ("", "i")
}
UNITS["Ki"] = UNITS.pop("ki")
DNS_NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
# The library would read the schema and a megabyte of definitions again for every object.
kubernetes_validate.utils.schema_contents = functools.cache(kubernetes_validate.utils.schema_contents)
PROBES = ("startupProbe", "livenessProbe", "readinessProbe")


class InvalidObject(Exception):
    """A cluster would refuse the object, or it would not do what it says."""


def has_kustomize_5() -> bool:
    """Whether kubectl renders with kustomize 5, as kubectl does since 1.27."""
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        return False
    version = subprocess.run([kubectl, "version", "--client", "-o", "json"], capture_output=True, check=False)
    return version.returncode == 0 and json.loads(version.stdout).get("kustomizeVersion", "").startswith("v5.")


needs_kubectl = pytest.mark.skipif(not has_kustomize_5(), reason="needs kubectl 1.27 or newer (kustomize 5)")


def render(directory: Path) -> list[Object]:
    """What `kubectl apply -k` would send."""
    result = subprocess.run(["kubectl", "kustomize", directory], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert not result.stderr, f"a deprecated field: {result.stderr}"
    return list(yaml.safe_load_all(result.stdout))


def check_objects(objects: Iterable[Object]) -> None:
    """Check each of these objects, and that they fit together.

    Raises:
        InvalidObject: the first error, with the object and the field.
    """
    objects = list(objects)
    assert objects, "there is nothing to check"
    for obj in objects:
        try:
            check_object(obj)
        except InvalidObject as error:
            raise InvalidObject(f"{name_of(obj)}: {error}") from error
    check_together(objects)


def name_of(obj: Object) -> str:
    return f"{obj.get('kind')} {(obj.get('metadata') or {}).get('name')}"


# One object


def check_object(obj: Object) -> None:
    check_schema(obj)
    check_no_nulls(obj)
    if not DNS_NAME.fullmatch(obj["metadata"]["name"]):
        raise InvalidObject(f"the name {obj['metadata']['name']} is not a DNS name")
    for pod in find_pods(obj):
        check_pod(pod)


def check_schema(obj: Object) -> None:
    group, _, version = str(obj.get("apiVersion")).rpartition("/")
    schema = SCHEMAS / f"{group}_{version}_{obj.get('kind')}.json"
    try:
        if schema.exists():
            jsonschema.Draft202012Validator(read_strict(schema)).validate(obj)
            obj = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": obj["metadata"]}  # a CRD leaves metadata open
        kubernetes_validate.validate(obj, KUBERNETES, strict=True)
    except (jsonschema.ValidationError, kubernetes_validate.ValidationError) as error:
        raise InvalidObject(f"{'.'.join(map(str, error.absolute_path))}: {error.message}") from error
    except kubernetes_validate.SchemaNotFoundError as error:
        raise InvalidObject(error.message) from error


@functools.cache
def read_strict(schema: Path) -> Any:
    return forbid_unknown(json.loads(schema.read_text()))


def forbid_unknown(schema: Any) -> Any:
    """A schema that refuses unknown properties wherever a cluster would drop them."""
    if not isinstance(schema, dict):
        return schema
    strict = schema | {key: forbid_unknown(schema[key]) for key in SUB_SCHEMAS if key in schema}
    if "properties" in schema:
        strict["properties"] = {name: forbid_unknown(value) for name, value in schema["properties"].items()}
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            strict.setdefault("additionalProperties", False)
    return strict


def check_no_nulls(value: Any, path: str = "") -> None:
    """Schemas allow null nearly everywhere, but it is an empty field of the template that somebody forgot."""
    if value is None:
        raise InvalidObject(f"{path} is empty")
    for key, item in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        check_no_nulls(item, f"{path}.{key}".lstrip("."))


def find_pods(value: Any) -> Iterator[Object]:
    """Every pod specification in an object, wherever its kind has it."""
    if isinstance(value, dict):
        if isinstance(value.get("containers"), list):
            yield value
        for item in value.values():
            yield from find_pods(item)


def containers_of(pod: Object) -> list[Object]:
    return [*pod.get("initContainers", []), *pod["containers"]]


def check_pod(pod: Object) -> None:
    volumes = {volume["name"] for volume in pod.get("volumes", [])}
    mounted = set()
    require_unique("name", (item["name"] for item in [*pod.get("volumes", []), *containers_of(pod)]))
    for container in containers_of(pod):
        check_container(container)
        mounted |= {mount["name"] for mount in container.get("volumeMounts", [])}
    if mounted ^ volumes:
        raise InvalidObject(f"volumes {sorted(volumes)} are not those that are mounted: {sorted(mounted)}")


def check_container(container: Object) -> None:
    ports = container.get("ports", [])
    require_unique("variable", (variable["name"] for variable in container.get("env", [])))
    require_unique("mountPath", (mount["mountPath"] for mount in container.get("volumeMounts", [])))
    require_unique("containerPort", (port["containerPort"] for port in ports))
    known = {port.get("name") for port in ports} | {port["containerPort"] for port in ports}
    for probe in PROBES:
        for action in container.get(probe, {}).values():
            if isinstance(action, dict) and "port" in action and action["port"] not in known:
                raise InvalidObject(f"{probe}: there is no port {action['port']}")
    resources = container.get("resources", {})
    requests, limits = (read_quantities(resources.get(key, {})) for key in ("requests", "limits"))
    for name in requests.keys() & limits.keys():
        if requests[name] > limits[name]:
            raise InvalidObject(f"{name}: the request is above the limit")


def require_unique(what: str, values: Iterable[Any]) -> None:
    for value, count in Counter(values).items():
        if count > 1:
            raise InvalidObject(f"{what} {value} occurs {count} times")


def read_quantities(quantities: Mapping[str, Any]) -> dict[str, float]:
    return {name: read_quantity(value) for name, value in quantities.items()}


def read_quantity(value: str | float) -> float:
    found = QUANTITY.fullmatch(str(value))
    if found is None or (found[2] or "") not in UNITS:
        raise InvalidObject(f"{value!r} is not a quantity")
    return float(found[1]) * UNITS[found[2] or ""]


# Objects together


def check_together(objects: list[Object]) -> None:
    require_unique("object", (f"{obj['apiVersion']} {name_of(obj)} {namespace_of(obj)}" for obj in objects))
    templates = [obj["spec"]["template"] for obj in objects if "template" in obj.get("spec", {})]
    known = {(obj["kind"], obj["metadata"]["name"]) for obj in objects}
    for obj in objects:
        check_selectors(obj, templates)
        target = obj.get("spec", {}).get("scaleTargetRef")
        if target and (target.get("kind", "Deployment"), target["name"]) not in known:
            raise InvalidObject(f"{name_of(obj)}: there is no {target.get('kind', 'Deployment')} {target['name']}")


def namespace_of(obj: Object) -> str:
    return str(obj["metadata"].get("namespace", ""))


def check_selectors(obj: Object, templates: list[Object]) -> None:
    """What an object selects must exist among these templates of pods, and have the ports that a Service names."""
    spec = obj.get("spec", {})
    selector = spec.get("podSelector") or spec.get("selector") or {}
    labels = selector.get("matchLabels", selector)
    if not labels or not templates:
        return
    chosen = [t for t in templates if labels.items() <= t["metadata"].get("labels", {}).items()]
    if not chosen:
        raise InvalidObject(f"{name_of(obj)}: no pod has the labels {labels}")
    if obj["kind"] == "Service":
        ports = [port for pod in chosen for c in pod["spec"]["containers"] for port in c.get("ports", [])]
        known = {port.get("name") for port in ports} | {port["containerPort"] for port in ports}
        for port in spec["ports"]:
            if (target := port.get("targetPort", port["port"])) not in known:
                raise InvalidObject(f"{name_of(obj)}: no pod has the port {target}")
