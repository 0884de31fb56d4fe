"""Options: where values come from, how texts are parsed, and what errors say."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tgis_cli.decide.resolve import describe_options
from tgis_server.errors import UsageError
from tgis_server.options import ServeConfig, load_config, options
from tgis_server.run import Run
from tgis_server.words.url_credentials import split_credentials


def load(environ: dict[str, str] | None = None, config_file: Path | None = None, **flags: object):
    return load_config(flags, environ or {}, config_file)


@pytest.fixture
def config_file(tmp_path: Path):
    def write(text: str) -> Path:
        file = tmp_path / "tgis.toml"
        file.write_text(text)
        return file

    return write


def test_a_flag_wins_over_the_environment_and_that_over_the_file(config_file):
    file = config_file("port = 1\ngrpc-port = 2\nmax_batch_size = 3\n")

    loaded = load({"PORT": "11", "GRPC_PORT": "12"}, file, port="21")

    assert (loaded.config.port, loaded.config.grpc_port, loaded.config.max_batch_size) == (21, 12, 3)
    assert [loaded.origins[name] for name in ("port", "grpc_port", "max_batch_size", "host")] == [
        "flag --port",
        "environment GRPC_PORT",
        str(file),
        "default",
    ]


def test_a_blank_variable_counts_as_not_set():
    assert load({"PORT": "  "}).origins["port"] == "default"


@pytest.mark.parametrize("word", ["n", "No", "F", "false", "OFF", "0"])
def test_false_words_switch_a_boolean_off(word: str):
    assert load({"PREFIX_CACHE": word}).config.prefix_cache is False


@pytest.mark.parametrize("word", ["y", "true", "1", "anything"])
def test_every_other_word_switches_a_boolean_on(word: str):
    assert load({"JSON_OUTPUT": word}).config.json_output is True


def test_a_boolean_with_a_value_takes_only_true_and_false():
    assert load({"DEFAULT_INCLUDE_STOP_SEQS": "false"}).config.default_include_stop_seqs is False

    with pytest.raises(UsageError, match=r"DEFAULT_INCLUDE_STOP_SEQS is 'yes', but must be true or false"):
        load({"DEFAULT_INCLUDE_STOP_SEQS": "yes"})


def test_a_port_that_kubernetes_has_set_for_a_service_is_explained():
    with pytest.raises(UsageError, match=r"Kubernetes sets such a variable for a Service.*enableServiceLinks"):
        load({"PORT": "tcp://10.0.0.1:3000"})


@pytest.mark.parametrize(
    ("environ", "text"),
    [
        ({"GRPC_PORT": "70000"}, "environment GRPC_PORT is '70000', but must be an integer from 0 to 65535."),
        ({"MAX_BATCH_SIZE": "0"}, "environment MAX_BATCH_SIZE is '0', but must be an integer of at least 1."),
        ({"DTYPE": "int3"}, "environment DTYPE is 'int3', but must be one of float32, float16, bfloat16 (also fp32, "),
        (
            {"KV_CACHE_MEMORY": "much"},
            "KV_CACHE_MEMORY is 'much', but must be a size such as 512MiB or 2GiB.",
        ),
        ({"CUDA_PROCESS_MEMORY_FRACTION": "nan"}, "cuda_process_memory_fraction must be in range 0 < x <= 1: env"),
        ({"MAX_CONCURRENT_REQUESTS": "0"}, "max_concurrent_requests must be > 0: environment MAX_CONCURRENT_REQUESTS"),
        ({"TOKENIZATION_WORKERS": "0"}, "tokenization_workers must be > 0: environment TOKENIZATION_WORKERS is '0'."),
        ({"MAX_NEW_TOKENS": "0"}, "max_new_tokens (0) at least 1: environment MAX_NEW_TOKENS is '0'."),
        ({"MAX_SEQUENCE_LENGTH": "1"}, "max_sequence_length (1) must be at least 2 (1 input + 1 output)"),
        ({"MAX_PREFILL_PADDING": "1.5"}, "max_prefill_padding (1.5) must be a percentage in the range [0.0, 1.0]"),
        ({"NUM_GPUS": "2", "NUM_SHARD": "4"}, "NUM_GPUS and num_shard are set to different values (2 and 4)"),
        ({"TLS_CERT_PATH": "c.pem"}, "tls: must provide both cert and key: --tls-key-path is not given"),
        ({"TLS_CLIENT_CA_CERT_PATH": "c.pem"}, "tls: cannot provide client ca cert without keypair"),
        ({"HTTP_TLS": "server"}, "--http-tls server needs --tls-cert-path and --tls-key-path."),
        (
            {"HTTP_TLS": "mutual", "TLS_CERT_PATH": "c.pem", "TLS_KEY_PATH": "k.pem"},
            "--http-tls mutual needs --tls-client-ca-cert-path, the CA of the clients' certificates.",
        ),
        ({"HTTP_TLS": "on"}, "environment HTTP_TLS is 'on', but must be one of off, server, mutual."),
        ({"MAX_REQUEST_BYTES": "5GiB"}, "but must be a size such as 512KiB, at most 1,073,741,824 bytes."),
        ({"PORT": "8033"}, "--grpc-port and --port are both 8033: choose two different ports."),
        (
            {"TGIS_FAULT": "shard0:exit@load"},
            "--fault provokes failures and is accepted only with --rehearse or --allow-faults.",
        ),
        (
            {"DTYPE": "float16", "DTYPE_STR": "bfloat16"},
            "dtype and dtype_str args both provided with different values",
        ),
    ],
)
def test_an_error_names_where_the_value_comes_from_and_what_is_accepted(environ: dict[str, str], text: str):
    with pytest.raises(UsageError) as caught:
        load(environ)

    assert text in str(caught.value)


@pytest.mark.parametrize(("text", "dtype"), [("torch.float16", "float16"), ("half", "float16"), ("bf16", "bfloat16")])
def test_other_spellings_of_a_dtype_are_understood(text: str, dtype: str):
    assert load(dtype=text).config.dtype == dtype


@pytest.mark.parametrize(("text", "size"), [("2GiB", 2 << 30), ("512MB", 512_000_000), ("1.5g", 3 << 29), ("7", 7)])
def test_sizes_have_units(text: str, size: int):
    assert load(kv_cache_memory=text).config.kv_cache_memory == size


def test_an_unknown_option_in_a_file_gets_a_suggestion(config_file):
    with pytest.raises(UsageError, match=r"unknown option grpc_prt\. Did you mean grpc_port\?"):
        load(config_file=config_file("grpc_prt = 1\n"))


def test_a_file_that_is_no_toml_is_named(config_file):
    with pytest.raises(UsageError, match=r"tgis\.toml is not valid TOML"):
        load(config_file=config_file("port: 1\n"))


@pytest.mark.parametrize(
    ("text", "level"), [("WARN", "warning"), ("hyper=off,debug,tonic=warn", "debug"), ("a=b", "info")]
)
def test_of_a_log_filter_the_general_level_counts(text: str, level: str):
    assert load({"LOG_LEVEL": text}).config.log_level == level


def test_a_second_variable_is_read_where_the_first_is_not_set():
    both = {"OTLP_SERVICE_NAME": "a", "OTEL_SERVICE_NAME": "b"}

    assert load(both).config.otlp_service_name == "a"
    assert load(both | {"OTLP_SERVICE_NAME": ""}).origins["otlp_service_name"] == "environment OTEL_SERVICE_NAME"


def test_no_two_options_share_a_variable_or_a_letter():
    variables = [option.env for option in options()]
    letters = [option.opt.short for option in options() if option.opt.short]

    assert len(set(variables)) == len(variables)
    assert len(set(letters)) == len(letters)


RUN = Run(
    config=ServeConfig(tls_cert_path=Path("c"), tls_key_path=Path("k"), fault=None),
    run_dir=Path("/run"),
    model_id="m",
    model_dir=Path("/models/m"),
    engine="native",
    device="cpu",
    dtype="float32",
    num_shard=2,
    max_sequence_length=2048,
    is_max_sequence_length_explicit=False,
    max_batch_tokens=512,
    tokenization_workers=1,
    launcher_phases=(("starting", 1.5), ("checking the machine", 2.0)),
)


def test_a_run_survives_its_file(tmp_path: Path):
    run = replace(RUN, run_dir=tmp_path)

    run.save()

    assert Run.read(run.file, {}) == run


def test_credentials_of_a_url_are_neither_shown_nor_written(tmp_path: Path):
    loaded = load(otlp_endpoint="https://me:word@host:4317/path")
    run = replace(RUN, config=loaded.config, run_dir=tmp_path)

    run.save()

    assert describe_options(loaded)["otlp_endpoint"]["value"] == "https://***@host:4317/path"
    assert "https://***@host:4317/path" in run.file.read_text()
    assert "word" not in run.file.read_text()
    assert Run.read(run.file, {"OTLP_ENDPOINT": "https://me:word@host:4317/path"}) == run


@pytest.mark.parametrize(
    ("url", "plain", "credentials"),
    [
        ("http://host:1", "http://host:1", ""),
        ("me:word@host:1", "host:1", "me:word"),
        ("https://me:w/o@r://d@host/path", "https://host/path", "me:w/o@r://d"),
    ],
)
def test_credentials_are_what_precedes_the_host(url: str, plain: str, credentials: str):
    assert split_credentials(url) == (plain, credentials)
