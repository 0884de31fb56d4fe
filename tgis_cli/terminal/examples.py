"""Command lines that the help of each command ends with. A test parses all of them."""

from __future__ import annotations

from tgis_cli.terminal.help_page import Row

# command as typed -> (command line, what it does)
EXAMPLES: dict[str, tuple[tuple[str, str], ...]] = {
    "tgis": (
        ("tgis run", "Try the small demo model in a prompt loop."),
        ("tgis download-weights HuggingFaceTB/SmolLM2-135M", "Download a model from the hub."),
        ("tgis plan HuggingFaceTB/SmolLM2-135M", "See whether it runs here."),
        ("tgis launch HuggingFaceTB/SmolLM2-135M", "Serve it."),
        ('tgis generate "Once upon a time"', "Query it from another terminal."),
    ),
    "tgis launch": (
        ("tgis launch", "Serve the demo model."),
        ("tgis launch org/model --num-shard 2", "Serve a model from the cache on two GPUs."),
        ("tgis launch ./my-model --port 3001 --grpc-port 8034", "Serve a directory on other ports."),
        ("tgis launch org/model --config tgis.toml", "Take options from a file."),
    ),
    "tgis run": (
        ("tgis run", "Talk to the demo model."),
        ('tgis run org/model "Once upon a time"', "Serve a model, complete one text, stop."),
        ("tgis run org/model --max-new-tokens 50 -n 3 Hello", "Show three short answers."),
    ),
    "tgis ps": (
        ("tgis ps", "Show model, ports and state of each server."),
        ("tgis ps --json", "The same for scripts."),
    ),
    "tgis top": (
        ("tgis top", "Watch the only server; q ends it."),
        ("tgis top --url http://host:3000", "Watch another server, by its HTTP port."),
        ("tgis top --once --json", "A single reading, for scripts."),
    ),
    "tgis stop": (
        ("tgis stop", "Stop the only server."),
        ("tgis stop org/model", "Stop one by its model."),
        ("tgis stop --all --timeout 30", "Stop all, and wait up to 30 seconds for each."),
    ),
    "tgis generate": (
        ('tgis generate "Once upon a time"', "Complete a text."),
        ("tgis generate --max-new-tokens 50 --temperature 0.8 Hello", "Sample at most 50 tokens."),
        ("tgis generate --url grpcs://host:8033 --ca ca.pem Hello", "Ask a server with TLS."),
        ("tgis generate --file prompts.jsonl --json", "Complete many texts, for scripts."),
    ),
    "tgis tokenize": (
        ('tgis tokenize "Once upon a time"', "Ask a running server."),
        ("tgis tokenize --model org/model Hello", "Use the tokenizer of a model in the cache."),
    ),
    "tgis bench": (
        ("tgis bench", "Measure the running server in half a minute."),
        ("tgis bench --launch demo --html report.html", "Start a server, measure it, stop it; write charts."),
        ("tgis bench load --sweep", "Find how much the server can take."),
    ),
    "tgis bench load": (
        ("tgis bench load --concurrency 1,8,32 --duration 30", "Three levels of half a minute."),
        (
            "tgis bench load --rate 4 --input-tokens 64:512 --output-tokens 200",
            "Send four requests per second, at random times.",
        ),
        ('tgis bench load --goodput "ttft<500ms,itl<50ms"', "The highest rate with good latencies."),
        ("tgis bench load --prompts trace.jsonl --json result.json", "Replay a trace, for scripts."),
    ),
    "tgis bench engine": (
        ("tgis bench engine org/model", "Decode steps and prefills, beside what this machine can do."),
        ("tgis bench engine org/model --rows 1,4 --context 512,4096 --prefill 2048", "At sizes of one's own."),
        ("tgis bench engine org/model --num-shard 2 --json two.json", "On two shards, for a comparison."),
    ),
    "tgis bench start": (
        ("tgis bench start org/model", "Three cold and three warm starts."),
        ("tgis bench start org/model --repeat 10 --markdown start.md", "Ten of each, for a pull request."),
    ),
    "tgis bench compare": (
        ("tgis bench compare old.json new.json", "Exit code 1 if a figure is more than 5 % worse, beyond noise."),
        ("tgis bench compare old.json new.json --max-regress 10% --markdown", "A table for a pull request."),
    ),
    "tgis bench ab": (
        ('tgis bench ab --a org/model --b "org/model --num-shard 2"', "Are two shards faster?"),
        (
            "tgis bench ab --a-url host-1:8033 --b-url host-2:8033 --metric ttft_p50",
            "Two servers, by first token.",
        ),
        ("tgis bench ab --a org/model --b-python new/bin/python --b org/model", "Is a new version faster?"),
    ),
    "tgis health": (
        ("tgis health", "Exit code 0 if the server of this machine is ready."),
        ("tgis health --probe live --timeout 5", "Whether it is alive; wait up to 5 seconds."),
        ("tgis health --url https://host:3000 --ca ca.pem --json", "The whole answer of another server."),
    ),
    "tgis plan": (
        ("tgis plan org/model", "Does the model fit on this machine?"),
        ("tgis plan org/model --gpu 2xA100-40GB", "On two A100 of 40 GB?"),
        ("tgis plan org/model --gpu 24GB --max-sequence-length 4096", "On 24 GB, with shorter sequences?"),
        ("tgis plan org/model --cpu 64GiB", "On a CPU with this much free memory?"),
    ),
    "tgis manifest": (
        ("tgis manifest org/model --gpu L4 | kubectl apply -f -", "Download and serve a model on GPUs."),
        ("tgis manifest org/model --cpu 16GiB --model-source pvc:models", "From a cache in a claim, on a CPU."),
        ("tgis manifest org/model --for kustomize --output base --replicas 2", "Write files for kustomize."),
        ("tgis manifest org/model --for kserve --gpu 2xA100-80GB --json", "For KServe, as JSON."),
    ),
    "tgis doctor": (
        ("tgis doctor", "Check this machine."),
        ("tgis doctor org/model", "Check whether a model could be served."),
        ("tgis doctor --bundle report.tar.gz", "Also write a bug report."),
    ),
    "tgis download-weights": (
        ("tgis download-weights org/model", "Download a model into the cache."),
        ("tgis download-weights org/model --revision v1.0", "A tag, branch or commit of it."),
        ("tgis download-weights org/model --dry-run", "Only show what would be downloaded."),
    ),
    "tgis models": (
        ("tgis models", "List the models in the cache."),
        ("tgis models rm org/model", "Remove one."),
    ),
    "tgis models rm": (
        ("tgis models rm org/model", "Remove a model; asks first."),
        ("tgis models rm org/model --revision v1.0 --dry-run", "Show what one revision would free."),
    ),
    "tgis bundle": (
        ("tgis bundle org/model model.tar", "Pack a model into a tar file."),
        ("tgis bundle org/model - | ssh host tgis unbundle -", "Copy a model to another host."),
    ),
    "tgis unbundle": (
        ("tgis unbundle model.tar", "Check a bundle, and put it into the cache."),
        ("tgis unbundle model.tar --to ./my-model", "Put it into a directory instead."),
    ),
    "tgis convert-to-safetensors": (
        ("tgis convert-to-safetensors org/model", "Convert a model in the cache."),
        ("tgis convert-to-safetensors ./my-model", "Convert the files of a directory."),
    ),
    "tgis convert-to-fast-tokenizer": (
        ("tgis convert-to-fast-tokenizer org/model", "Make tokenizer.json beside the other files."),
        ("tgis convert-to-fast-tokenizer ./my-model --output-path out", "Make it in another directory."),
    ),
    "tgis convert-to-onnx": (
        ("tgis convert-to-onnx org/model ./model-onnx", "Export a model from the cache."),
        ("tgis convert-to-onnx ./my-model ./model-onnx --optimize", "Also optimize the graph."),
    ),
    "tgis migrate": (
        ("tgis migrate deployment.yaml", "Explain the settings of a manifest."),
        ("kubectl kustomize overlays/prod | tgis migrate -", "Explain what kustomize generates."),
        ("tgis migrate docker-compose.yml start.sh --json", "Several files, for scripts."),
    ),
    "tgis config": (
        ("tgis config show", "Show all options and their values."),
        ("tgis config show org/model --config tgis.toml", "Show what a launch would do."),
    ),
    "tgis config show": (
        ("tgis config show", "Show the options as the environment sets them."),
        ("tgis config show org/model --config tgis.toml", "Show what a launch would do."),
        ("tgis config show --json", "The same for scripts."),
    ),
    "tgis config init": (
        ("tgis config init", "Write tgis.toml with comments."),
        ("tgis launch --config tgis.toml", "Use it."),
    ),
    "tgis version": (
        ("tgis version", "Show the versions of TGIS and of its packages."),
        ("tgis version --json", "The same for bug reports."),
    ),
    "text-generation-launcher": (
        ("text-generation-launcher --model-name org/model --port 3000", "Serve a model from the cache."),
        ("MODEL_NAME=org/model text-generation-launcher", "The same, as in manifests."),
    ),
    "text-generation-server": (
        ("text-generation-server download-weights org/model", "Download a model into the cache."),
        ("text-generation-server serve org/model tgis_native", "Serve it."),
    ),
    "text-generation-server serve": (
        ("text-generation-server serve org/model tgis_native", "Serve a model from the cache."),
        ("text-generation-server serve org/model tgis_native --dtype float16", "With half precision."),
    ),
    "grpc_healthcheck": (
        ("grpc_healthcheck", "Exit code 0 if the server of this machine is ready."),
        ("grpc_healthcheck --server-url host:8033 --service-name live", "Whether another server is alive."),
    ),
}


def find_examples(command: str) -> tuple[Row, ...]:
    return tuple(Row(*example) for example in EXAMPLES.get(command, ()))
