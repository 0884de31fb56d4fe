"""The part of a Kubernetes API server that `kubectl apply`, `diff` and `rollout status` need, for the real kubectl.

It stores objects and judges none; no controller runs, so a test says what becomes of a workload.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

Object = dict[str, Any]

SERVING = {"observedGeneration": 1, "replicas": 1, "updatedReplicas": 1, "availableReplicas": 1}
STARTING = {"observedGeneration": 1, "replicas": 1, "updatedReplicas": 1, "availableReplicas": 0}
RESOURCES = {  # those of the manifests, and what a roll-out consists of
    "v1": {
        "Service": "services",
        "Pod": "pods",
        "Event": "events",
        "Namespace": "namespaces",
        "ConfigMap": "configmaps",
        "PersistentVolumeClaim": "persistentvolumeclaims",
        "Secret": "secrets",
        "ServiceAccount": "serviceaccounts",
    },
    "apps/v1": {
        "Deployment": "deployments",
        "StatefulSet": "statefulsets",
        "ReplicaSet": "replicasets",
        "ControllerRevision": "controllerrevisions",
    },
    "policy/v1": {"PodDisruptionBudget": "poddisruptionbudgets"},
    "networking.k8s.io/v1": {"NetworkPolicy": "networkpolicies"},
    "autoscaling/v2": {"HorizontalPodAutoscaler": "horizontalpodautoscalers"},
}
WORKLOADS = ("deployments", "statefulsets")
CLUSTER_WIDE = ("namespaces",)
OBJECT_PATH = re.compile(r"/(?:api|apis)/(.+?)/(?:namespaces/([^/]+)/)?([a-z]+)(?:/([^/]+))?")
METHODS = {"GET": "get", "POST": "create", "PATCH": "patch"}
VERBS = ["create", "delete", "get", "list", "patch", "update", "watch"]
PARAMETERS = [{"name": name, "in": "query"} for name in ("dryRun", "fieldValidation")]


def base_of(version: str) -> str:
    return f"/{'apis' if '/' in version else 'api'}/{version}"


class StubCluster:
    """Objects by resource, namespace and name; and every request that was to change something."""

    def __init__(self) -> None:
        self.objects: dict[tuple[str, str, str], Object] = {}
        self.changes: list[str] = []  # "POST deployments/demo": what was not a dry run
        self.forbidden: set[tuple[str, str]] = set()  # (verb, resource) that nobody may
        self.refuses: dict[str, str] = {}  # resource: why the cluster refuses every object of it
        self.states: list[Object] = [SERVING]  # of the workload at each look at it; the last one stays
        self.looked_at_workload = threading.Event()
        self.add("v1", "Namespace", "", {"metadata": {"name": "team"}})

    def add(self, version: str, kind: str, namespace: str, obj: Object) -> None:
        resource = RESOURCES[version][kind]
        obj = {"apiVersion": version, "kind": kind} | obj
        obj["metadata"] = {"namespace": namespace, "uid": "u", "resourceVersion": "1"} | obj["metadata"]
        self.objects[resource, namespace, obj["metadata"]["name"]] = obj

    def answer(self, method: str, target: str, body: bytes) -> tuple[int, Object]:
        """The status and body of the answer to a request."""
        url = urlsplit(target)
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        if url.path in ("/api", "/apis") or url.path.startswith("/openapi") or url.path == "/version":
            return self.describe(url.path)
        for version, kinds in RESOURCES.items():
            if url.path == base_of(version):
                return 200, list_resources(version, kinds)
        found = OBJECT_PATH.fullmatch(url.path)
        if found is None:
            return refuse(404, "NotFound", f"there is no {url.path}")
        version, namespace, resource, name = found[1], found[2] or "", found[3], found[4] or ""
        if resource == "namespaces":
            namespace = ""
        if (METHODS[method], resource) in self.forbidden:
            words = f'User "tester" cannot {METHODS[method]} resource "{resource}" in the namespace "{namespace}"'
            return refuse(403, "Forbidden", f"{resource} is forbidden: {words}")
        if query.get("watch") == "true":
            return 200, {}  # nothing happens while somebody watches
        if method == "GET":
            return self.read(version, resource, namespace, name, query)
        return self.write(method, resource, namespace, name, query, json.loads(body))

    def describe(self, path: str) -> tuple[int, Object]:
        if path == "/version":
            return 200, {"major": "1", "minor": "32", "gitVersion": "v1.32.0"}
        if path == "/api":
            return 200, {"kind": "APIVersions", "versions": ["v1"]}
        if path == "/apis":
            versions = [version for version in RESOURCES if "/" in version]
            names = [{"groupVersion": version, "version": version.split("/")[1]} for version in versions]
            groups = [{"name": n["groupVersion"].split("/")[0], "versions": [n], "preferredVersion": n} for n in names]
            return 200, {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}
        if path == "/openapi/v3":
            paths = {base_of(v).lstrip("/"): {"serverRelativeURL": f"/openapi/v3{base_of(v)}"} for v in RESOURCES}
            return 200, {"paths": paths}
        version = path.removeprefix("/openapi/v3/").partition("/")[2]
        return 200, describe_parameters(version)

    def read(self, version: str, resource: str, namespace: str, name: str, query: dict[str, str]) -> tuple[int, Object]:
        if name:
            obj = self.objects.get((resource, namespace, name))
            if obj is None:
                return refuse(404, "NotFound", f'{resource} "{name}" not found')
            return 200, self.as_it_is_now(resource, obj)
        found = [obj for (kind, space, _), obj in self.objects.items() if (kind, space) == (resource, namespace)]
        labels = dict(part.split("=") for part in query.get("labelSelector", "").split(",") if part)
        fields = dict(part.split("=") for part in query.get("fieldSelector", "").split(",") if part)
        found = [obj for obj in found if labels.items() <= obj["metadata"].get("labels", {}).items()]
        found = [obj for obj in found if all(read_field(obj, path) == value for path, value in fields.items())]
        kind = next(kind for kind, plural in RESOURCES[version].items() if plural == resource)
        items = [self.as_it_is_now(resource, obj) for obj in found]
        if resource in WORKLOADS:
            self.looked_at_workload.set()
            self.states[:-1] = self.states[1:-1]
        return 200, {"kind": f"{kind}List", "apiVersion": version, "metadata": {"resourceVersion": "1"}, "items": items}

    def as_it_is_now(self, resource: str, obj: Object) -> Object:
        return obj | {"status": self.states[0]} if resource in WORKLOADS else obj

    def write(
        self, method: str, resource: str, namespace: str, name: str, query: dict[str, str], body: Object
    ) -> tuple[int, Object]:
        if resource in self.refuses:
            return refuse(403, "Forbidden", self.refuses[resource])
        name = name or body["metadata"]["name"]
        old = self.objects.get((resource, namespace, name), {"metadata": {"namespace": namespace, "uid": "u"}})
        new = merge(old, body)
        new["metadata"]["resourceVersion"] = "1"
        if "dryRun" not in query:
            self.changes.append(f"{method} {resource}/{name}")
            self.objects[resource, namespace, name] = new
        return (201, new) if method == "POST" else (200, self.as_it_is_now(resource, new))


def list_resources(version: str, kinds: dict[str, str]) -> Object:
    resources = [
        {"name": plural, "singularName": "", "namespaced": plural not in CLUSTER_WIDE, "kind": kind, "verbs": VERBS}
        for kind, plural in kinds.items()
    ]
    return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": version, "resources": resources}


def describe_parameters(version: str) -> Object:
    """That objects may be tried without storing them, and are checked for unknown fields: kubectl asks."""
    group, _, number = version.rpartition("/")
    paths = {}
    for kind, plural in RESOURCES.get(version, {}).items():
        space = "" if plural in CLUSTER_WIDE else "/namespaces/{namespace}"
        paths[f"{base_of(version)}{space}/{plural}/{{name}}"] = {
            "patch": {
                "parameters": PARAMETERS,
                "x-kubernetes-group-version-kind": {"group": group, "kind": kind, "version": number},
            }
        }
    return {"openapi": "3.0.0", "info": {"title": "stub", "version": "1"}, "paths": paths}


def refuse(code: int, reason: str, message: str) -> tuple[int, Object]:
    status = {"kind": "Status", "apiVersion": "v1", "status": "Failure"}
    return code, status | {"reason": reason, "message": message, "code": code, "metadata": {}}


def merge(old: Any, new: Any) -> Any:
    """A strategic merge: lists of named things are merged by name, and null removes. Keys with $ are ignored."""
    if is_list_of_names(old) and is_list_of_names(new):
        items = {item["name"]: item for item in old}
        return [*(items | {item["name"]: merge(items.get(item["name"]), item) for item in new}).values()]
    if not isinstance(new, dict):
        return new
    merged = dict(old) if isinstance(old, dict) else {}
    merged |= {key: merge(merged.get(key), value) for key, value in new.items() if not key.startswith("$")}
    return {key: value for key, value in merged.items() if value is not None}


def is_list_of_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, dict) and "name" in item for item in value)


def read_field(obj: Any, path: str) -> Any:
    for key in path.split("."):
        obj = obj.get(key, {}) if isinstance(obj, dict) else {}
    return obj


def make_handler(cluster: StubCluster) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_request(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            code, answer = cluster.answer(self.command, self.path, self.rfile.read(length))
            data = json.dumps(answer).encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_PATCH = handle_request  # noqa: N815  # names of the base class

        def log_message(self, *_: Any) -> None:
            pass

    return Handler


@contextmanager
def serving(cluster: StubCluster, kubeconfig: Path) -> Iterator[None]:
    """Serve the cluster on a free port; kubectl finds it by this file, as context `stub`."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), make_handler(cluster))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), name="stub cluster")
    thread.start()
    context = {"name": "stub", "context": {"cluster": "stub", "namespace": "team", "user": "tester"}}
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "stub", "cluster": {"server": f"http://127.0.0.1:{server.server_port}"}}],
        "users": [{"name": "tester", "user": {}}],
        "contexts": [context],
        "current-context": "stub",
    }
    kubeconfig.write_text(json.dumps(config))
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
