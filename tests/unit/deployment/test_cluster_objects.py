"""The judge of manifests: what it must refuse. A judge that refuses nothing would pass every other test."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import yaml

from cluster_objects import InvalidObject, check_objects, read_quantity

GOOD = yaml.safe_load("""
deployment:
  apiVersion: apps/v1
  kind: Deployment
  metadata: {name: demo, labels: {app: demo}}
  spec:
    selector: {matchLabels: {app: demo}}
    template:
      metadata: {labels: {app: demo}}
      spec:
        containers:
        - name: server
          image: tgis:1
          env: [{name: PORT, value: "3000"}]
          ports: [{name: http, containerPort: 3000}]
          livenessProbe: {httpGet: {path: /health/live, port: http}}
          resources: {requests: {cpu: 500m, memory: 1Gi}, limits: {memory: 1Gi}}
          volumeMounts: [{name: tmp, mountPath: /tmp}]
        volumes: [{name: tmp, emptyDir: {}}]
service:
  apiVersion: v1
  kind: Service
  metadata: {name: demo}
  spec:
    selector: {app: demo}
    ports: [{name: http, port: 3000, targetPort: http}]
scaled:
  apiVersion: keda.sh/v1alpha1
  kind: ScaledObject
  metadata: {name: demo}
  spec:
    scaleTargetRef: {name: demo}
    triggers: [{type: prometheus, metadata: {query: up, threshold: "1"}}]
runtime:
  apiVersion: serving.kserve.io/v1alpha1
  kind: ServingRuntime
  metadata: {name: demo}
  spec:
    containers:
    - {name: kserve-container, image: "tgis:1", resources: {limits: {memory: 1Gi}}}
    supportedModelFormats: [{name: tgis, autoSelect: true}]
monitor:
  apiVersion: monitoring.coreos.com/v1
  kind: PodMonitor
  metadata: {name: demo}
  spec:
    selector: {matchLabels: {app: demo}}
    podMetricsEndpoints: [{port: http, path: /metrics}]
""")


@pytest.fixture
def objects() -> dict[str, Any]:
    return copy.deepcopy(GOOD)


def test_good_objects_pass(objects: dict[str, Any]):
    check_objects(objects.values())


def container(objects: dict[str, Any]) -> Any:
    return objects["deployment"]["spec"]["template"]["spec"]["containers"][0]


@pytest.mark.parametrize(
    ("breaking", "complaint"),
    [
        (lambda o: o["deployment"]["spec"].update(replica=1), "'replica' was unexpected"),
        (lambda o: o["deployment"]["metadata"].update(label={}), "'label' was unexpected"),
        (lambda o: o["deployment"].update(apiVersion="apps/v1beta1"), "Couldn't find schema"),
        (lambda o: o["deployment"].update(kind="Deploymnet"), "Couldn't find schema"),
        (lambda o: o["deployment"]["metadata"].update(name="Demo_1"), "not a DNS name"),
        (lambda o: container(o).update(image=None), "image is empty"),
        (lambda o: container(o)["env"][0].update(value=3000), "3000 is not of type"),
        (lambda o: container(o)["env"].append({"name": "PORT", "value": "1"}), "variable PORT occurs 2 times"),
        (lambda o: container(o)["livenessProbe"]["httpGet"].update(port="htpp"), "there is no port htpp"),
        (lambda o: container(o)["resources"]["requests"].update(memory="2Gi"), "the request is above the limit"),
        (lambda o: container(o)["resources"]["limits"].update(memory="1 GB"), "'1 GB' is not a quantity"),
        (lambda o: container(o)["volumeMounts"].append({"name": "shm", "mountPath": "/dev/shm"}), "volumes"),
        (lambda o: container(o)["volumeMounts"].pop(), "volumes"),
        (lambda o: o["service"]["spec"]["selector"].update(app="other"), "no pod has the labels"),
        (lambda o: o["service"]["spec"]["ports"][0].update(targetPort="grpc"), "no pod has the port grpc"),
        (lambda o: o["service"]["metadata"].update(name="demo.", namespace="a"), "not a DNS name"),
        (lambda o: o.update(again=o["service"]), "occurs 2 times"),
        (lambda o: o["scaled"]["spec"].update(minReplica=1), "'minReplica' was unexpected"),
        (lambda o: o["scaled"]["metadata"].update(lables={}), "'lables' was unexpected"),
        (lambda o: o["scaled"]["spec"]["scaleTargetRef"].update(name="other"), "there is no Deployment other"),
        (lambda o: o["scaled"]["spec"].pop("triggers"), "'triggers' is a required property"),
        (lambda o: o["scaled"]["spec"]["triggers"][0]["metadata"].update(threshold=1), "1 is not of type 'string'"),
        (lambda o: o["runtime"]["spec"]["containers"][0].update(port=1), "'port' was unexpected"),
        (lambda o: o["runtime"]["spec"]["supportedModelFormats"][0].update(version=1), "1 is not of type 'string'"),
        (lambda o: o["monitor"]["spec"]["podMetricsEndpoints"][0].update(prot="x"), "'prot' was unexpected"),
        (lambda o: o["monitor"]["spec"]["selector"]["matchLabels"].update(app="x"), "no pod has the labels"),
    ],
)
def test_a_broken_field_is_named(breaking: Callable[[dict[str, Any]], None], complaint: str, objects: dict[str, Any]):
    breaking(objects)

    with pytest.raises(InvalidObject, match=complaint):
        check_objects(objects.values())


@pytest.mark.parametrize(
    ("quantity", "value"), [("500m", 0.5), (4, 4.0), ("1.5Gi", 1.5 * 2**30), ("2k", 2e3), ("3Ki", 3072.0), ("1G", 1e9)]
)
def test_quantities_are_compared_as_numbers(quantity: str | int, value: float):
    assert read_quantity(quantity) == value


def test_no_objects_are_not_good_objects():
    with pytest.raises(AssertionError):
        check_objects([])
