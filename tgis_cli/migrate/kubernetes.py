"""Kubernetes objects: anything with a list of ``containers``, and the ConfigMaps that they refer to.

Objects are found by their shape, not by their kind, so that pods in Lists, kustomize patches and custom resources (such
as KServe's runtimes) are found too.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from tgis_cli.migrate.containers import (
    OURS,
    Container,
    Given,
    LocatedText,
    Probe,
    Surroundings,
    is_reference,
    line_of,
    to_int,
)
from tgis_cli.migrate.shell import split_assignment
from tgis_cli.migrate.yaml_text import load_documents

PROBES = ("startupProbe", "livenessProbe", "readinessProbe")
SOURCES = {
    "configMapKeyRef": "ConfigMap",
    "secretKeyRef": "Secret",
    "configMapRef": "ConfigMap",
    "secretRef": "Secret",
    "fieldRef": "the pod",
    "resourceFieldRef": "the pod",
}
PROBE_ACTIONS = ("httpGet", "grpc", "tcpSocket", "exec")


def read_objects(documents: list[Any], file: str) -> Iterator[Mapping[str, Any]]:
    """All objects, including those in Lists and the inline patches of Kustomizations."""
    for document in documents:
        if isinstance(document, list):  # a JSON patch: a list of operations whose values are parts of objects
            yield from filter(None, map(read_operation, document))
        elif isinstance(document, dict):
            yield from read_objects(as_list(document.get("items")), file)
            for patch in dicts(document.get("patches")):
                if isinstance(patch.get("patch"), str):
                    yield from read_objects(load_documents(patch["patch"], file, line_of(patch["patch"])), file)
            yield document


def read_operation(operation: Any) -> Mapping[str, Any] | None:
    """``add /spec/…/containers/0/env/- {name, value}`` as a container of a patch."""
    path = str(as_dict(operation).get("path", ""))
    match = re.search(r"containers/\d+/(env|args|command)(/|$)", path)
    if not match:
        return None
    value = operation.get("value")
    items = value if isinstance(value, list) else [value]
    return {"kind": "JSON patch", "containers": [{match[1]: items}]}


def read_config_maps(objects: list[Mapping[str, Any]]) -> dict[str, dict[str, str]]:
    """The data of each ConfigMap by name, including ConfigMaps that Kustomizations generate."""
    found = {}
    for item in objects:
        if item.get("kind") == "ConfigMap":
            found[name_of(item)] = as_dict(item.get("data"))
        for generator in dicts(item.get("configMapGenerator")):
            literals = [(line_of(text), *split_assignment(str(text))) for text in as_list(generator.get("literals"))]
            found[str(generator.get("name"))] = {LocatedText(name, line): value for line, name, value in literals}
    return found


def read_manifests(documents: list[Any], file: str, config_maps: Mapping[str, Mapping[str, str]]) -> list[Container]:
    """Every container of a file's objects, and each of its ConfigMaps that has settings of TGIS.

    Args:
        config_maps: from all files.
    """
    objects = list(read_objects(documents, file))
    services = [name_of(item) for item in objects if item.get("kind") == "Service" and not is_headless(item)]
    found = []
    for item in objects:
        owner = f"{item.get('kind', 'object')} {name_of(item)}".strip()
        for pod in find_pods(item):
            linked = [] if pod.get("enableServiceLinks") == "false" else services
            for raw in pod_containers(pod):
                around = read_surroundings(raw, pod, linked)
                found.append(read_container(raw, around, owner, file, config_maps))
    for name, data in read_config_maps(objects).items():
        env = [Given(str(key), str(value), line_of(key)) for key, value in data.items()]
        if any(given.name in OURS for given in env):
            found.append(Container(file, f"ConfigMap {name}", env[0].line, env))
    return found


def find_pods(node: Any) -> Iterator[Mapping[str, Any]]:
    """Every mapping with containers, and KServe's predictor with a model."""
    if isinstance(node, dict):
        if isinstance(node.get("containers"), list) or "runtime" in as_dict(node.get("model")):
            yield node
        for key, value in node.items():
            if key not in ("items", "patches"):  # separate objects
                yield from find_pods(value)
    elif isinstance(node, list):
        for value in node:
            yield from find_pods(value)


def pod_containers(pod: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    model = as_dict(pod.get("model"))
    listed = [*dicts(pod.get("initContainers")), *dicts(pod.get("containers"))]
    return listed + ([{"name": "model", **model}] if model else [])


def read_container(
    raw: Mapping[str, Any],
    around: Surroundings,
    owner: str,
    file: str,
    config_maps: Mapping[str, Mapping[str, str]],
) -> Container:
    env = [*read_env_from(raw, config_maps, around), *read_env(raw, config_maps)]
    values = {given.name: given.value for given in env if given.value is not None}
    argv: list[str] = [substitute(word, values) for word in [*as_list(raw.get("command")), *as_list(raw.get("args"))]]
    name = f", container {raw['name']}" if raw.get("name") else ""
    return Container(file, owner + name, line_of(raw.get("name")), env, str(raw.get("image", "")), argv, around)


def read_env(raw: Mapping[str, Any], config_maps: Mapping[str, Mapping[str, str]]) -> Iterator[Given]:
    known: dict[str, str] = {}
    for entry in dicts(raw.get("env")):
        name = entry.get("name")
        if name is None:
            continue
        value: str | None = str(entry.get("value", ""))
        source = ""
        for kind, reference in as_dict(entry.get("valueFrom")).items():
            target = as_dict(reference)
            value, source = None, f"{SOURCES.get(kind, kind)} {target.get('name', '')}".strip()
            if kind == "configMapKeyRef":
                value = config_maps.get(str(target.get("name")), {}).get(str(target.get("key")))
        if value is not None:
            value = known[str(name)] = substitute(value, known)
            if is_reference(value):
                value, source = None, known[str(name)]
        yield Given(str(name), value, line_of(name), source)


def read_env_from(
    raw: Mapping[str, Any], config_maps: Mapping[str, Mapping[str, str]], around: Surroundings
) -> Iterator[Given]:
    for entry in dicts(raw.get("envFrom")):
        prefix = str(entry.get("prefix", ""))
        for kind, reference in entry.items():
            name = str(as_dict(reference).get("name", ""))
            if kind == "configMapRef" and name in config_maps:
                for key, value in config_maps[name].items():
                    yield Given(prefix + key, value)
            elif name:
                around.missing.append(f"{SOURCES.get(kind, kind)} {name}")


def substitute(word: str, values: Mapping[str, str]) -> LocatedText:
    """Replace ``$(NAME)`` of known variables by their values."""
    return LocatedText(re.sub(r"\$\((\w+)\)", lambda match: values.get(match[1], match[0]), str(word)), line_of(word))


def read_surroundings(raw: Mapping[str, Any], pod: Mapping[str, Any], linked_services: list[str]) -> Surroundings:
    ports = dicts(raw.get("ports"))
    named_ports = {str(port.get("name")): port.get("containerPort") for port in ports}
    volumes = {str(volume.get("name")): volume for volume in dicts(pod.get("volumes"))}
    mounts = {
        str(mount.get("mountPath")): volumes.get(str(mount.get("name")), {})
        for mount in dicts(raw.get("volumeMounts"))
        if mount.get("readOnly") != "true"
    }
    limits = as_dict(as_dict(raw.get("resources")).get("limits"))
    gpus = [to_int(value) for name, value in limits.items() if name.startswith("nvidia.com/")]
    return Surroundings(
        "terminationGracePeriodSeconds",
        to_int(pod.get("terminationGracePeriodSeconds")),
        is_kubernetes=True,
        is_root_read_only=as_dict(raw.get("securityContext")).get("readOnlyRootFilesystem") == "true",
        writable=[path for path, volume in mounts.items() if is_writable(volume)],
        has_shared_memory="/dev/shm" in mounts,  # noqa: S108  a path in a container
        ports=[number for port in ports if (number := to_int(port.get("containerPort"))) is not None],
        num_gpus=next((count for count in gpus if count is not None), None),
        probes=[read_probe(name, raw[name], named_ports, raw) for name in PROBES if isinstance(raw.get(name), dict)],
        linked_services=linked_services,
    )


def is_writable(volume: Mapping[str, Any]) -> bool:
    return not {"configMap", "secret", "projected", "downwardAPI"} & set(volume)


def read_probe(name: str, probe: Mapping[str, Any], ports: Mapping[str, Any], raw: Mapping[str, Any]) -> Probe:
    how = next((how for how in PROBE_ACTIONS if how in probe), "")
    action = as_dict(probe.get(how))
    target = action.get("path") or action.get("service") or " ".join(map(str, as_list(action.get("command"))))
    port = action.get("port")
    line = next((line_of(key) for key in raw if key == name), 0)
    return Probe(
        name,
        how,
        str(target or ""),
        to_int(ports.get(str(port), port)),
        action.get("scheme") == "HTTPS",
        to_int(probe.get("periodSeconds")) or 10,
        to_int(probe.get("failureThreshold")) or 3,
        line,
    )


def is_headless(service: Mapping[str, Any]) -> bool:
    return as_dict(service.get("spec")).get("clusterIP") == "None"


def name_of(item: Mapping[str, Any]) -> str:
    metadata = as_dict(item.get("metadata"))
    return str(metadata.get("name") or metadata.get("generateName") or "")


def as_dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def dicts(value: Any) -> list[dict[str, Any]]:
    """The mappings of a list; Kubernetes would refuse anything else in it."""
    return [entry for entry in as_list(value) if isinstance(entry, dict)]
