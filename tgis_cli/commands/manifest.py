"""``tgis manifest``: generate the Kubernetes objects that serve a model, sized as ``tgis plan`` would."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from tgis_cli.commands.shared_options import Token
from tgis_cli.model_files.completion import complete_model
from tgis_cli.terminal.options import complete_from, with_serve_options
from tgis_cli.terminal.sentences import print_sentence
from tgis_cli.terminal.stop_signals import interrupted_by_signals
from tgis_cli.terminal.suggestions import explain_no_choice
from tgis_server.errors import UsageError

app = typer.Typer(add_completion=False)

TARGETS = ("deployment", "kserve", "kustomize")
AUTOSCALERS = ("hpa", "keda")


def manifest(
    flags: Mapping[str, Any],
    config_file: Path | None,
    target: Annotated[
        str,
        typer.Option(
            "--for",
            metavar="|".join(TARGETS),
            help="Plain objects, KServe objects, or a directory for kustomize.",
            autocompletion=complete_from(TARGETS),
        ),
    ] = "deployment",
    output: Annotated[
        str | None, typer.Option(metavar="DIR", help="Write a file for each object instead of printing them.")
    ] = None,
    name: Annotated[
        str | None, typer.Option(metavar="NAME", help="Name of the objects; without it, derived from the model's.")
    ] = None,
    namespace: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Namespace of the objects; without it, kubectl's. KEDA needs it."),
    ] = None,
    image: Annotated[
        str | None, typer.Option(metavar="IMAGE", help="Image of TGIS; without it, `tgis:` and this version.")
    ] = None,
    replicas: Annotated[int, typer.Option(min=1, help="Number of pods; with --autoscale, the minimum.")] = 1,
    model_source: Annotated[
        str | None,
        typer.Option(
            metavar="SOURCE",
            help="Where pods get the model: pvc:CLAIM, pvc:CLAIM/PATH, hub, hub:CLAIM, bundle:CLAIM/FILE or image. "
            "Without it, a hub model is downloaded.",
        ),
    ] = None,
    hf_token_secret: Annotated[
        str | None, typer.Option(metavar="SECRET", help="Secret with the hub's token as HF_TOKEN, for downloads.")
    ] = None,
    gpu: Annotated[
        str | None,
        typer.Option(metavar="GPU", help="GPUs of the cluster, such as 80GB, H100, 2xA100-40 or RTX4090:2."),
    ] = None,
    cpu: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Most memory that a pod on CPUs may have; without it, what the model needs."),
    ] = None,
    cpu_cores: Annotated[
        int | None,
        typer.Option(min=1, metavar="INT", help="CPUs of a pod; without it, chosen by its number of shards."),
    ] = None,
    autoscale: Annotated[
        str | None,
        typer.Option(
            metavar="|".join(AUTOSCALERS),
            help="Scale by the length of the queue, with Kubernetes' own autoscaler or with KEDA.",
            autocompletion=complete_from(AUTOSCALERS),
        ),
    ] = None,
    max_replicas: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="INT",
            help="Maximum number of pods with --autoscale; without it, 4 or twice --replicas, whichever is more.",
        ),
    ] = None,
    prometheus: Annotated[
        str | None, typer.Option(metavar="URL", help="Address at which KEDA queries Prometheus.", show_default=False)
    ] = None,
    tls_secret: Annotated[
        str | None, typer.Option(metavar="SECRET", help="Secret with tls.crt and tls.key for the gRPC port.")
    ] = None,
    client_ca: Annotated[
        str | None,
        typer.Option(metavar="CONFIGMAP", help="ConfigMap with ca.crt, which must have signed clients' certificates."),
    ] = None,
    fs_group: Annotated[
        int | None,
        typer.Option(min=0, metavar="GID", help="Group that may write to volumes, where the platform assigns none."),
    ] = None,
    monitor: Annotated[bool, typer.Option("--monitor", help="Add a PodMonitor, for the Prometheus operator.")] = False,
    token: Token = None,
    json_: Annotated[bool, typer.Option("--json", help="Print one List as JSON, without comments.")] = False,
) -> None:
    """Print the Kubernetes objects that serve a model, with the reasons for their numbers as comments.

    Takes the options of `tgis launch`. Memory, CPUs and times come from the arithmetic of `tgis plan`, which reads only
    config.json and the headers of the weights. Nothing is applied. The exit code is 4 if the model does not fit.
    """
    from tgis_cli.manifest import Wanted, make_manifest, to_json, to_yaml, write_manifest

    for flag, choice, choices in (("--for", target, TARGETS), ("--autoscale", autoscale, AUTOSCALERS)):
        if choice is not None and choice not in choices:
            raise UsageError(explain_no_choice(flag, choice, choices))
    if output == "":
        raise UsageError("--output is empty (is a variable unset?): name a directory.")
    if target == "kustomize" and output is None:
        raise UsageError("--for kustomize writes a directory of files: name it with --output DIR.")
    if json_ and output is not None:
        raise UsageError(f"--json prints on stdout, and --output {output} writes YAML files: leave one out.")
    wanted = Wanted(
        target=target,
        name=name,
        namespace=namespace,
        image=image,
        replicas=replicas,
        model_source=model_source,
        hf_token_secret=hf_token_secret,
        gpu=gpu,
        cpu=cpu,
        cpu_cores=cpu_cores,
        autoscale=autoscale,
        max_replicas=max_replicas,
        prometheus=prometheus,
        tls_secret=tls_secret,
        client_ca=client_ca,
        fs_group=fs_group,
        monitor=monitor,
    )
    with interrupted_by_signals():
        made = make_manifest(wanted, flags, dict(os.environ), config_file, token)
        files = write_manifest(made, Path(output)) if output else []
    for warning in made.warnings:
        print_sentence(f"warning: {warning}", sys.stderr)
    if output is None:
        print(to_json(made.objects) if json_ else to_yaml(made.objects), end="\n" if json_ else "")
    for file in files:
        print(file)


MODEL = "Directory, or hub id of a cached or remote model; without one, the demo model."

app.command()(with_serve_options(manifest, positional_model=MODEL, complete_model=complete_model))
