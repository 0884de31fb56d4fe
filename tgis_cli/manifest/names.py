"""Names of objects and images, as Kubernetes accepts them."""

from __future__ import annotations

import hashlib
import re

from tgis_server.errors import UsageError

# Kubernetes cuts the name of a pod to 58 characters before it appends five random ones. What is left must still begin
# with the name of the Deployment, by which metrics are told apart, and a hyphen; KServe names it NAME-predictor.
MAX_NAME = 47
MAX_NAMESPACE = 63
LABEL = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
NAMESPACE = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
RESOURCE = re.compile(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?")  # of Secrets, ConfigMaps and claims
MAX_RESOURCE = 253


def name_after(model: str) -> str:
    """A name for the objects of a model: ``granite-3-3-2b`` for ``ibm-granite/granite-3.3-2b``."""
    last = model.rstrip("/").rpartition("/")[2] or model
    name = re.sub(r"[^a-z0-9]+", "-", last.lower()).strip("-") or "model"
    return shorten(name if name[0].isalpha() else f"tgis-{name}", model)


def shorten(name: str, whole: str) -> str:
    """A long name, truncated, with a hash of the whole, so that names with the same beginning stay different."""
    if len(name) <= MAX_NAME:
        return name
    digest = hashlib.sha256(whole.encode()).hexdigest()[:8]
    return f"{name[: MAX_NAME - 9].rstrip('-')}-{digest}"


def check_name(flag: str, name: str, pattern: re.Pattern[str] = LABEL, longest: int = MAX_NAME) -> str:
    """
    Raises:
        UsageError: Kubernetes would refuse the name.
    """
    if pattern.fullmatch(name) and len(name) <= longest:
        return name
    first = "beginning with a letter and " if pattern is LABEL else ""
    dots = ", dots" if pattern is RESOURCE else ""
    raise UsageError(
        f"{flag} is {name!r}, but must be at most {longest} lower-case letters, digits{dots} and hyphens, {first}"
        "ending with a letter or a digit."
    )


def check_resource(flag: str, name: str) -> str:
    """Check the name of an existing Secret, ConfigMap or claim."""
    return check_name(flag, name, RESOURCE, MAX_RESOURCE)


def check_image(image: str) -> str:
    """
    Raises:
        UsageError: the image has neither a fixed tag nor a digest.
    """
    if not image or any(char.isspace() for char in image):
        raise UsageError(f"--image is {image!r}, but must be a name with a tag or digest, such as registry/tgis:0.1.0.")
    name, _, digest = image.partition("@")
    _, colon, tag = name.rpartition("/")[2].partition(":")
    if digest or (colon and tag and tag != "latest"):
        return image
    what = "the tag latest, which changes" if tag == "latest" else "no tag"
    raise UsageError(f"--image {image} has {what}: name a version or a digest, so that all pods run the same image.")
