"""`deployment/deploy_model.sh` with the real kubectl and a stub of a cluster: what it applies, and what it says.

Every bad input has a sentence and an exit code, and changes nothing.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster_objects import needs_kubectl
from stub_cluster import SERVING, STARTING, StubCluster, serving

pytestmark = needs_kubectl

SCRIPT = Path(__file__).parents[2] / "deployment/deploy_model.sh"
SHELL_TOOLS = ("sh", "basename", "dirname", "grep", "readlink", "sed", "tr")
OBJECTS = """
apiVersion: apps/v1
kind: Deployment
metadata: {name: demo}
spec:
  selector: {matchLabels: {app: demo}}
  template: {metadata: {labels: {app: demo}}, spec: {containers: [{name: server, image: "tgis:1"}]}}
---
apiVersion: v1
kind: Service
metadata: {name: demo}
spec: {selector: {app: demo}, ports: [{name: grpc, port: 8033}]}
"""
FAILED = STARTING | {
    "conditions": [{"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded"}],
}
STATEFUL = {
    "observedGeneration": 1,
    "replicas": 1,
    "updatedReplicas": 1,
    "currentRevision": "demo-2",
    "updateRevision": "demo-2",
}
WRONG_USAGE, NO_CLUSTER, REFUSED, NOT_SERVING = 2, 3, 4, 1


class Site:
    """A checkout's deployment folder, a kubeconfig, and a PATH on which `sleep` does not wait."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bin = folder / "bin"
        self.bin.mkdir()
        self.script = Path(shutil.copy(SCRIPT, folder))
        self.environ = {"PATH": f"{self.bin}:{os.environ['PATH']}", "HOME": str(folder), "KUBECONFIG": "kubeconfig"}
        self.write_program("sleep", "exit 0")
        for model in ("demo", "granite-8b"):
            (folder / "models" / model).mkdir(parents=True)
            (folder / "models" / model / "kustomization.yaml").write_text("resources: [objects.yaml]\n")
        self.objects = folder / "models/demo/objects.yaml"
        self.objects.write_text(OBJECTS)

    def write_program(self, name: str, text: str) -> None:
        (self.bin / name).write_text(f"#!/bin/sh\n{text}\n")
        (self.bin / name).chmod(0o755)

    def hide_kubectl(self) -> None:
        """Leave only what every system has."""
        for tool in SHELL_TOOLS:
            (self.bin / tool).unlink(missing_ok=True)
            (self.bin / tool).symlink_to(shutil.which(tool) or tool)
        self.environ["PATH"] = str(self.bin)

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        pipe = subprocess.PIPE
        command = [self.script, *arguments]
        return subprocess.Popen(command, cwd=self.folder, env=self.environ, stdout=pipe, stderr=pipe, text=True)

    def deploy(self, *arguments: str) -> tuple[int, str, str]:
        process = self.start(*arguments)
        with process:
            try:
                out, err = process.communicate(timeout=60)
            finally:
                process.kill()
        return process.returncode, out, err


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


@pytest.fixture
def cluster(site: Site) -> Iterator[StubCluster]:
    stub = StubCluster()
    with serving(stub, site.folder / "kubeconfig"):
        yield stub


def add_pods(cluster: StubCluster, *pods: dict[str, Any], revision: int = 1) -> None:
    """Pods of one revision of the Deployment, by their status."""
    labels = {"app": "demo", "pod-template-hash": f"hash{revision}"}
    annotations = {"deployment.kubernetes.io/revision": str(revision)}
    metadata = {"name": f"demo-hash{revision}", "labels": labels, "annotations": annotations}
    cluster.add("apps/v1", "ReplicaSet", "team", {"metadata": metadata})
    for number, status in enumerate(pods):
        name = f"demo-hash{revision}-{number}"
        pod = {"metadata": {"name": name, "labels": labels}, "status": status}
        cluster.add("v1", "Pod", "team", pod)


def unready(**status: Any) -> dict[str, Any]:
    return {"conditions": [{"type": "Ready", "status": "False"}], **status}


def waiting(reason: str, message: str = "", last: dict[str, Any] | None = None) -> dict[str, Any]:
    """The state of a container that does not run; ``last``: how it ended before."""
    state = {"waiting": {"reason": reason, "message": message}}
    return {"name": "server", "ready": False, "state": state, "lastState": {"terminated": last} if last else {}}


def ended(code: int, message: str) -> dict[str, Any]:
    return {"exitCode": code, "reason": "Error", "message": message}


# What it does


def test_a_model_is_applied_whole_and_its_endpoint_printed_when_it_serves(site: Site, cluster: StubCluster):
    site.script = SCRIPT
    site.write_program("kubectl", f'echo "$1 $2 $3 $4 $5 $6" >>calls\nexec {shutil.which("kubectl")} "$@"')
    cluster.states = [STARTING, STARTING, SERVING]

    code, out, err = site.deploy("demo")

    assert (code, err) == (0, "")
    assert sorted(change.removeprefix("POST ") for change in cluster.changes) == [
        "deployments/demo",
        "networkpolicies/demo",
        "serviceaccounts/demo",
        "services/demo",
    ]
    assert out.count("0 of 1 updated replicas are available") == 1
    assert "demo serves gRPC at demo.team.svc:8033 within the cluster" in out
    assert "kubectl --context stub -n team port-forward service/demo 8033:8033" in out
    assert 'tgis generate "Once upon a time" --url localhost:8033\n' in out
    calls = (site.folder / "calls").read_text().splitlines()
    asking = {call for call in calls if not call.startswith(("version --client", "config view"))}
    assert asking == {"--context stub --namespace team --request-timeout 30s"}


def test_a_second_deployment_shows_only_what_is_different(site: Site, cluster: StubCluster):
    kubectl = ["kubectl", "apply", "-k", "models/demo"]
    subprocess.run(kubectl, cwd=site.folder, env=site.environ, capture_output=True, check=True)
    site.objects.write_text(OBJECTS.replace("tgis:1", "tgis:2"))

    _, out, _ = site.deploy("demo", "--dry-run")

    changed = [line for line in out.splitlines() if line[:1] in "+-" and line[:3] not in ("+++", "---")]
    assert [line.replace(" ", "") for line in changed] == ["--image:tgis:1", "+-image:tgis:2"]


def test_a_namespace_that_may_not_be_looked_at_may_still_be_written(site: Site, cluster: StubCluster):
    cluster.forbidden.add(("get", "namespaces"))

    code, out, _ = site.deploy("demo", "--namespace=other", "--context", "stub", "--dry-run")

    assert code == 0
    assert "Changes for demo in namespace other of context stub:\n" in out
    assert "+  namespace: other\n" in out


def test_the_help_names_every_option_and_exit_code(site: Site):
    code, out, err = site.deploy("--help")

    assert (code, err) == (0, "")
    assert all(option in out for option in ("--dry-run", "--namespace", "--context", "--timeout", "Exit codes: 0"))


def test_a_link_to_the_script_finds_the_models(site: Site):
    link = site.folder / "bin/deploy"
    link.symlink_to(site.script)
    site.script = link

    assert site.deploy()[2] == "deploy_model.sh: Name a model: demo, granite-8b.\n"


@pytest.mark.parametrize("image", ["registry.example.com:5000/team/tgis:1.2", "registry.example.com/tgis@sha256:0a"])
def test_a_dry_run_shows_the_changes_with_the_named_image_and_makes_none(image: str, site: Site, cluster: StubCluster):
    code, out, err = site.deploy("demo", "--dry-run", "--image", image)

    assert (code, err, cluster.changes) == (0, "", [])
    assert "+kind: Deployment\n" in out
    assert f"+      - image: {image}\n" in out


def test_a_stateful_set_with_tls_is_waited_for_and_its_own_service_named(site: Site, cluster: StubCluster):
    defaulted = "spec:\n  replicas: 1\n  updateStrategy: {type: RollingUpdate}"  # as a real cluster stores it
    objects = OBJECTS.replace("kind: Deployment", "kind: StatefulSet").replace("spec:", defaulted, 1)
    objects = objects.replace("port: 8033", "port: 8033, appProtocol: https")
    pods = objects.split("---")[1].replace("name: demo", "name: a-demo-pods")
    site.objects.write_text(f"{objects}---{pods}")
    cluster.states = [STATEFUL | {"readyReplicas": 0}, STATEFUL | {"readyReplicas": 1}]
    labels = {"app": "demo", "controller-revision-hash": "demo-2"}
    pod = {"metadata": {"name": "demo-0", "labels": labels}, "status": unready(containerStatuses=[waiting("X")])}
    cluster.add("v1", "Pod", "team", pod)

    code, out, err = site.deploy("demo")

    assert (code, err) == (0, "")
    assert "Waiting for 1 pods to be ready... (X)" in out
    assert "demo serves gRPC at demo.team.svc:8033" in out
    assert "--url grpcs://localhost:8033 --ca ca.crt --tls-server-name demo.team.svc\n" in out


NEEDS = """
      volumes:
      - {name: model, persistentVolumeClaim: {claimName: models}}
      - {name: tls, secret: {secretName: demo-tls}}
      - {name: maybe, secret: {secretName: other, optional: true}}
      initContainers:
      - name: fetch
        image: "tgis:1"
        env: [{name: HF_TOKEN, valueFrom: {secretKeyRef: {name: hub-token, key: HF_TOKEN}}}]
      containers: [{name: server, image: "tgis:1"}]
"""


@pytest.fixture
def needs(site: Site) -> None:
    """Let the pods need a claim and two Secrets."""
    site.objects.write_text(
        OBJECTS.replace(
            '{metadata: {labels: {app: demo}}, spec: {containers: [{name: server, image: "tgis:1"}]}}',
            f"\n    metadata: {{labels: {{app: demo}}}}\n    spec:{NEEDS}",
        )
    )


@pytest.mark.usefixtures("needs")
def test_claims_and_secrets_that_are_missing_are_named_before_anything_is_applied(site: Site, cluster: StubCluster):
    cluster.add("v1", "Secret", "team", {"metadata": {"name": "hub-token"}})

    code, out, err = site.deploy("demo")

    assert (code, out, cluster.changes) == (NO_CLUSTER, "", [])
    assert 'and nothing was applied: persistentvolumeclaims "models", secrets "demo-tls".' in err


@pytest.mark.usefixtures("needs")
def test_what_the_folder_makes_and_what_may_not_be_looked_at_is_not_missing(site: Site, cluster: StubCluster):
    cluster.forbidden.add(("get", "secrets"))
    claim = "---\napiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {name: models}\n"
    site.objects.write_text(site.objects.read_text() + claim)

    assert site.deploy("demo", "--dry-run")[0] == 0


# Bad input: nothing is applied


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        ([], WRONG_USAGE, "Name a model: demo, granite-8b."),
        (["dmo"], WRONG_USAGE, "There is no model dmo. The models are demo, granite-8b."),
        (["../models/demo"], WRONG_USAGE, "There is no model ../models/demo."),
        ([".*"], WRONG_USAGE, "There is no model .*"),
        (["demo", "granite-8b"], WRONG_USAGE, "One model is deployed at a time: demo or granite-8b?"),
        (["demo", "--dryrun"], WRONG_USAGE, "There is no option --dryrun; --help lists them."),
        (["demo", "--namespace"], WRONG_USAGE, "--namespace needs a value."),
        (["demo", "--namespace", "--dry-run"], WRONG_USAGE, "--namespace needs a value."),
        (["demo", "--image="], WRONG_USAGE, "--image needs a value."),
        (["demo", "--image", "http://foo/bar:1"], WRONG_USAGE, "--image http://foo/bar:1 is not a name with a tag"),
        (
            ["demo", "--image", "foo@sha256:zz"],
            WRONG_USAGE,
            "foo@sha256:zz has a digest that is not hexadecimal",
        ),
        (["demo", "--timeout", "5m"], WRONG_USAGE, "--timeout is a whole number of seconds, at least 1, not 5m."),
        (["demo", "--timeout", "0"], WRONG_USAGE, "--timeout is a whole number of seconds, at least 1, not 0."),
        (["demo", "--image=registry/"], WRONG_USAGE, "--image registry/ is not a name with a tag or digest"),
        (["demo", '--image=a:1", x: "'], WRONG_USAGE, "is not a name with a tag or digest"),
        (["demo", "--image", "tgis"], WRONG_USAGE, "--image tgis has no tag: name a version, so that all pods run the"),
        (["demo", "--image=a:5000/tgis"], WRONG_USAGE, "--image a:5000/tgis has no tag"),
        (["demo", "--image=tgis:latest"], WRONG_USAGE, "--image tgis:latest changes"),
        (["demo", "--context", "prod"], NO_CLUSTER, "kubectl has no context prod; it has: stub"),
        (["demo", "-n", "nowhere"], NO_CLUSTER, "The cluster has no namespace nowhere: create it with"),
    ],
)
def test_a_wrong_argument_is_refused(arguments: list[str], code: int, sentence: str, site: Site, cluster: StubCluster):
    actual, out, err = site.deploy(*arguments)

    assert (actual, out, cluster.changes) == (code, "", [])
    assert err.startswith("deploy_model.sh: ")
    assert sentence in err


def test_without_kubectl_nothing_is_tried(site: Site):
    site.hide_kubectl()

    assert site.deploy("demo") == (NO_CLUSTER, "", "deploy_model.sh: There is no kubectl on the PATH: install it.\n")


@pytest.mark.parametrize("version", ['{"clientVersion": {"minor": "20"}}', '{"kustomizeVersion": "v4.5.7"}'])
def test_a_kubectl_that_cannot_render_the_manifests_is_too_old(version: str, site: Site):
    site.write_program("kubectl", f"echo '{version}'")

    code, _, err = site.deploy("demo")

    assert code == NO_CLUSTER
    assert "This kubectl is too old: kubectl 1.27 or newer, with kustomize 5, is needed." in err


@pytest.mark.parametrize(
    ("kubeconfig", "sentence"),
    [
        (None, "kubectl knows no cluster: set KUBECONFIG, or write ~/.kube/config."),
        ("a: [", "kubectl cannot read its configuration: error: error loading config file"),
        (
            '{"apiVersion": "v1", "kind": "Config", "contexts": [{"name": "prod", "context": {}}]}',
            "kubectl has no current context: name one with --context, or choose one with `kubectl config use-context`. "
            "It has: prod.",
        ),
    ],
)
def test_what_kubectl_lacks_is_named(kubeconfig: str | None, sentence: str, site: Site):
    if kubeconfig is not None:
        (site.folder / "kubeconfig").write_text(kubeconfig)

    code, _, err = site.deploy("demo")

    assert (code, sentence in err) == (NO_CLUSTER, True), err


def test_a_cluster_that_does_not_answer_is_named(site: Site):
    with serving(StubCluster(), site.folder / "kubeconfig"):
        pass

    code, _, err = site.deploy("demo", "--dry-run")

    assert code == NO_CLUSTER
    assert "The cluster of context stub does not answer: " in err
    assert "refused" in err
    assert "memcache.go" not in err


def test_without_temporary_files_the_working_directory_stays(site: Site, cluster: StubCluster):
    site.environ["TMPDIR"] = "/nonexistent"
    (site.folder / "kustomization.yaml").write_text("mine")

    code, _, err = site.deploy("demo", "--image", "tgis:2")

    assert code == NO_CLUSTER
    assert "There is no directory for temporary files: name one with TMPDIR." in err
    assert (site.folder / "kustomization.yaml").read_text() == "mine"


def test_a_missing_permission_is_named(site: Site, cluster: StubCluster):
    cluster.forbidden.add(("create", "deployments"))

    code, _, err = site.deploy("demo")

    assert (code, cluster.changes) == (NO_CLUSTER, [])
    assert "Context stub lacks a permission in namespace team: " in err
    assert 'cannot create resource "deployments"' in err


def test_objects_that_the_cluster_refuses_are_not_applied_in_part(site: Site, cluster: StubCluster):
    cluster.refuses["deployments"] = "exceeded quota: team"

    code, _, err = site.deploy("demo")

    assert (code, cluster.changes) == (REFUSED, [])
    assert "The cluster refuses the objects, and nothing was applied: " in err
    assert "exceeded quota: team" in err


def test_a_folder_without_a_server_is_refused(site: Site, cluster: StubCluster):
    site.objects.write_text(OBJECTS.split("---")[1])

    code, _, err = site.deploy("demo")

    assert (code, cluster.changes) == (REFUSED, [])
    assert "needs a Deployment or StatefulSet, and a Service; nothing was applied." in err


# A model that does not come


def test_a_crash_is_explained_by_the_termination_message(site: Site, cluster: StubCluster):
    cluster.states = [STARTING]
    crash = waiting("CrashLoopBackOff", "back-off 40s", ended(6, "The hub cannot be reached."))
    init = crash | {"name": "fetch"}
    add_pods(cluster, unready(initContainerStatuses=[init], containerStatuses=[waiting("PodInitializing")]))

    code, out, err = site.deploy("demo")

    assert code == NOT_SERVING
    assert "serves gRPC" not in out
    assert "Pod demo-hash1-0 is not ready.\n  fetch waits: CrashLoopBackOff: back-off 40s\n" in err
    assert "  it ended with exit code 6 (Error): The hub cannot be reached.\n" in err
    assert "demo does not start. It stays applied. To undo: kubectl --context stub -n team delete -k /" in err


def test_a_new_pod_without_a_node_is_explained_rather_than_a_failing_old_one(site: Site, cluster: StubCluster):
    cluster.states = [STARTING, STARTING, FAILED]
    message = "0/3 nodes are available: 3 Insufficient nvidia.com/gpu."
    unscheduled = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}
    add_pods(cluster, unready(containerStatuses=[waiting("CrashLoopBackOff")]), revision=9)
    add_pods(cluster, {"conditions": [unscheduled]}, revision=10)

    code, out, err = site.deploy("demo")

    assert code == NOT_SERVING
    assert f" ({message})\n" in out
    assert f"Pod demo-hash10-0 is not ready.\n  it has no node: {message}\n" in err
    assert "exceeded its progress deadline" in err


def test_the_first_unready_pod_is_explained_by_its_last_warning(site: Site, cluster: StubCluster):
    cluster.states = [STARTING]
    ready = {"conditions": [{"type": "Ready", "status": "True"}]}
    add_pods(cluster, ready, unready(containerStatuses=[waiting("ContainerCreating")]))
    for number, message in enumerate(["first", 'secret "demo-tls" not found']):
        event = {"metadata": {"name": f"e{number}"}, "type": "Warning", "message": message}
        subject = {"involvedObject": {"kind": "Pod", "name": "demo-hash1-1"}}
        cluster.add("v1", "Event", "team", event | subject | {"lastTimestamp": f"2026-01-01T00:00:0{number}Z"})

    code, _, err = site.deploy("demo", "--timeout=1")

    assert code == NOT_SERVING
    assert "Pod demo-hash1-1 is not ready.\n" in err
    assert '  last warning: secret "demo-tls" not found\n' in err
    assert "demo does not serve after " in err


def test_pods_that_cannot_be_created_are_explained_by_the_deployment(site: Site, cluster: StubCluster):
    forbidden = {"type": "ReplicaFailure", "status": "True", "message": 'pods "demo" is forbidden: exceeded quota'}
    cluster.states = [FAILED | {"conditions": [*FAILED["conditions"], forbidden]}]

    _, _, err = site.deploy("demo")

    assert 'No pod can be created: pods "demo" is forbidden: exceeded quota' in err


def refuse_some(cluster: StubCluster, what: str, times: int, after: str = "POST deployments/demo") -> None:
    """After this change, answer requests whose path contains ``what`` with 503, so many times."""
    real_answer = cluster.answer
    left = [times]

    def answer(method: str, target: str, body: bytes) -> Any:
        if after in cluster.changes and what in target and left[0] > 0:
            left[0] -= 1
            return 503, {"kind": "Status", "status": "Failure", "message": "etcd has no leader", "code": 503}
        return real_answer(method, target, body)

    cluster.answer = answer  # type: ignore[method-assign]


@pytest.mark.parametrize(
    ("kind", "undo"),
    [
        ("Deployment", "rollout undo deployment.apps/demo --to-revision=3\n"),
        ("StatefulSet", "rollout undo statefulset.apps/demo --to-revision=7\n"),
    ],
)
def test_undoing_a_partial_update_leaves_what_served_before(kind: str, undo: str, site: Site, cluster: StubCluster):
    site.objects.write_text(OBJECTS.replace("kind: Deployment", f"kind: {kind}"))
    cluster.states = [STATEFUL]
    annotations = {"deployment.kubernetes.io/revision": "3"}
    cluster.add("apps/v1", kind, "team", {"metadata": {"name": "demo", "annotations": annotations}})
    cluster.add("apps/v1", "ControllerRevision", "team", {"metadata": {"name": "demo-2"}, "revision": 7})
    refuse_some(cluster, f"/{kind.lower()}s/demo", 1, after="POST services/demo")

    code, _, err = site.deploy("demo")

    assert (code, cluster.changes) == (REFUSED, ["POST services/demo"])
    assert "Not all objects could be applied; those that were stay. To undo: kubectl --context stub -n team " in err
    assert undo in err


def test_a_cluster_that_falls_silent_for_a_while_is_asked_again(site: Site, cluster: StubCluster):
    cluster.states = [STARTING, SERVING]
    refuse_some(cluster, "/deployments/demo", 2)

    code, out, _ = site.deploy("demo")

    assert code == 0
    assert "etcd has no leader" in out


def test_a_cluster_that_stays_silent_ends_the_wait(site: Site, cluster: StubCluster):
    refuse_some(cluster, "/deployments/demo", 1000)

    code, _, err = site.deploy("demo")

    assert code == NOT_SERVING
    assert "It is not known whether demo serves: " in err
    assert "It stays applied." in err


def test_a_pod_that_is_gone_before_it_can_be_explained_does_not_hide_the_end(site: Site, cluster: StubCluster):
    cluster.states = [STARTING]
    add_pods(cluster, unready(containerStatuses=[waiting("ImagePullBackOff")]))
    refuse_some(cluster, "/pods/", 1000)

    code, _, err = site.deploy("demo")

    assert code == NOT_SERVING
    assert "demo does not start. It stays applied." in err


def test_an_interrupt_says_what_stands(site: Site, cluster: StubCluster):
    cluster.states = [STARTING]
    site.write_program("sleep", "exec /bin/sleep 60")
    process = site.start("demo")
    assert cluster.looked_at_workload.wait(30)

    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)

    assert process.returncode == 130
    assert "Interrupted. demo is applied, and the cluster goes on: kubectl --context stub -n team rollout status" in err
    assert "To undo: " in err


def test_the_script_has_no_finding_of_shellcheck():
    result = subprocess.run(
        [Path(sys.executable).parent / "shellcheck", SCRIPT], capture_output=True, text=True, check=False
    )

    assert (result.returncode, result.stdout) == (0, "")
