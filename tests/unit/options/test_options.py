"""Options: the origin of values, parsing, and error messages."""

from __future__ import annotations

from pathlib import Path

import pytest

from tgis_server.errors import UsageError
from tgis_server.options import load_config, options
from tgis_server.options.sources import MAX_FILE_BYTES
from tgis_server.words.sizes import format_bytes_for_option
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


def test_flags_override_the_environment_which_overrides_the_file(config_file):
    file = config_file("port = 1\ngrpc-port = 2\nmax_batch_size = 3\n")

    loaded = load({"PORT": "11", "GRPC_PORT": "12"}, file, port="21")

    assert (loaded.config.port, loaded.config.grpc_port, loaded.config.max_batch_size) == (21, 12, 3)
    assert [loaded.origins[name] for name in ("port", "grpc_port", "max_batch_size", "host")] == [
        "flag --port",
        "environment GRPC_PORT",
        str(file),
        "default",
    ]


def test_a_blank_variable_is_ignored():
    assert load({"PORT": "  "}).origins["port"] == "default"


@pytest.mark.parametrize("word", ["n", "No", "F", "false", "OFF", "0"])
def test_false_words_switch_a_boolean_off(word: str):
    assert load({"PREFIX_CACHE": word}).config.prefix_cache is False


@pytest.mark.parametrize("word", ["y", "true", "1", "anything"])
def test_every_other_word_switches_a_boolean_on(word: str):
    assert load({"JSON_OUTPUT": word}).config.json_output is True


def test_a_boolean_with_a_value_accepts_only_true_and_false():
    assert load({"DEFAULT_INCLUDE_STOP_SEQS": "false"}).config.default_include_stop_seqs is False

    with pytest.raises(UsageError, match=r"DEFAULT_INCLUDE_STOP_SEQS is 'yes', but must be true or false"):
        load({"DEFAULT_INCLUDE_STOP_SEQS": "yes"})


def test_a_port_variable_set_by_kubernetes_is_explained():
    with pytest.raises(UsageError, match=r"Kubernetes sets this variable if there is a Service.*enableServiceLinks"):
        load({"PORT": "tcp://10.0.0.1:3000"})


@pytest.mark.parametrize(
    ("environ", "text"),
    [
        ({"GRPC_PORT": "70000"}, "The variable GRPC_PORT is '70000', but must be an integer from 0 to 65535."),
        ({"MAX_BATCH_SIZE": "0"}, "The variable MAX_BATCH_SIZE is '0', but must be an integer of at least 1."),
        ({"DTYPE": "int3"}, "The variable DTYPE is 'int3', but must be one of float32, float16, bfloat16 (also fp32, "),
        (
            {"KV_CACHE_MEMORY": "much"},
            "KV_CACHE_MEMORY is 'much', but must be a size such as 512MiB or 2GiB.",
        ),
        ({"CUDA_PROCESS_MEMORY_FRACTION": "nan"}, "cuda_process_memory_fraction must be in range 0 < x <= 1. The"),
        ({"MAX_CONCURRENT_REQUESTS": "0"}, "max_concurrent_requests must be > 0. The variable MAX_CONCURRENT_REQUESTS"),
        ({"TOKENIZATION_WORKERS": "0"}, "tokenization_workers must be > 0. The variable TOKENIZATION_WORKERS is '0'."),
        ({"MAX_NEW_TOKENS": "0"}, "max_new_tokens (0) at least 1. The variable MAX_NEW_TOKENS is '0'."),
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
        ({"HTTP_TLS": "on"}, "The variable HTTP_TLS is 'on', but must be one of off, server, mutual."),
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
def test_an_error_names_the_origin_of_the_value_and_what_is_accepted(environ: dict[str, str], text: str):
    with pytest.raises(UsageError) as caught:
        load(environ)

    assert text in str(caught.value)


@pytest.mark.parametrize(("text", "dtype"), [("torch.float16", "float16"), ("half", "float16"), ("bf16", "bfloat16")])
def test_other_spellings_of_a_dtype_are_accepted(text: str, dtype: str):
    assert load(dtype=text).config.dtype == dtype


@pytest.mark.parametrize(("text", "size"), [("2GiB", 2 << 30), ("512MB", 512_000_000), ("1.5g", 3 << 29), ("7", 7)])
def test_sizes_may_have_units(text: str, size: int):
    assert load(kv_cache_memory=text).config.kv_cache_memory == size


@pytest.mark.parametrize(
    ("count", "text"),
    [(7, "7"), (1 << 10, "1KiB"), ((1 << 20) + 1, "1.1MiB"), (3 << 29, "1.5GiB"), (100 << 40, "100TiB")],
)
def test_a_size_that_is_advised_is_large_enough_when_it_is_pasted(count: int, text: str):
    assert format_bytes_for_option(count) == text
    assert count <= load(kv_cache_memory=text).config.kv_cache_memory < count + count / 10 + 1


def test_an_unknown_option_in_a_file_gets_a_suggestion(config_file):
    with pytest.raises(UsageError, match=r"unknown option grpc_prt on line 1\. Did you mean grpc_port\?"):
        load(config_file=config_file("grpc_prt = 1\n"))


def test_what_cannot_be_a_config_file_is_not_read_to_its_end(tmp_path: Path):
    (tmp_path / "large.toml").write_bytes(b"#" * (MAX_FILE_BYTES + 1))

    with pytest.raises(UsageError, match="Config file /dev/zero cannot be read: it is a device, not a file"):
        load(config_file=Path("/dev/zero"))
    with pytest.raises(UsageError, match="is too large: it has more than 1 MiB"):
        load(config_file=tmp_path / "large.toml")
    assert load(config_file=Path("/dev/null")) == load()


def test_wrong_values_of_a_file_are_all_named_with_their_lines(config_file):
    with pytest.raises(UsageError) as caught:
        load(config_file=config_file("# comment\nport = 'x'\n\nmax-batch-size = 0\n"))

    problems = str(caught.value)
    assert "tgis.toml, line 2: port is 'x', but must be an integer from 0 to 65535." in problems
    assert "tgis.toml, line 4: max_batch_size is '0', but must be an integer of at least 1." in problems


def test_a_table_in_a_config_file_is_refused_with_its_name_and_line(config_file):
    with pytest.raises(UsageError, match=r"unknown option limits on line 3\."):
        load(config_file=config_file("port = 1\n\n[limits]\nmax_batch_size = 2\n"))


def test_two_spellings_of_an_option_in_one_file_are_refused(config_file):
    with pytest.raises(UsageError, match=r"sets grpc_port twice, on lines 1 and 2\."):
        load(config_file=config_file("grpc-port = 1\ngrpc_port = 2\n"))


def test_an_invalid_config_file_is_named(config_file):
    with pytest.raises(UsageError, match=r"tgis\.toml is not valid TOML"):
        load(config_file=config_file("port: 1\n"))


@pytest.mark.parametrize(
    ("text", "level"), [("WARN", "warning"), ("hyper=off,debug,tonic=warn", "debug"), ("a=b", "info")]
)
def test_only_the_general_level_of_a_log_filter_is_used(text: str, level: str):
    assert load({"LOG_LEVEL": text}).config.log_level == level


def test_a_second_variable_is_read_if_the_first_is_not_set():
    both = {"OTLP_SERVICE_NAME": "a", "OTEL_SERVICE_NAME": "b"}

    assert load(both).config.otlp_service_name == "a"
    assert load(both | {"OTLP_SERVICE_NAME": ""}).origins["otlp_service_name"] == "environment OTEL_SERVICE_NAME"


def test_no_two_options_share_a_variable_or_a_letter():
    variables = [option.env for option in options()]
    letters = [option.opt.short for option in options() if option.opt.short]

    assert len(set(variables)) == len(variables)
    assert len(set(letters)) == len(letters)


@pytest.mark.parametrize(
    ("url", "plain", "credentials"),
    [
        ("http://host:1", "http://host:1", ""),
        ("me:word@host:1", "host:1", "me:word"),
        ("https://me:w/o@r://d@host/path", "https://host/path", "me:w/o@r://d"),
    ],
)
def test_everything_before_the_host_is_credentials(url: str, plain: str, credentials: str):
    assert split_credentials(url) == (plain, credentials)
