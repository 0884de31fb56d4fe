"""What the doctor says of variables."""

from __future__ import annotations

from pathlib import Path

import pytest

from doctor_context import GPUS, complaints, make_context, say
from tgis_cli.doctor.environment import (
    check_burdens,
    check_hub,
    check_misspelt,
    check_options,
    check_paths,
    check_proxies,
)
from tgis_cli.doctor.examine import examine

# -- options


def test_variables_that_a_start_would_refuse_are_failures_and_the_rest_is_judged(tmp_path: Path):
    environ = {"PORT": "tcp://10.0.0.1:80", "GRPC_PORT": "x", "MAX_BATCH_SIZE": "7", "QUANTIZE": "gptq"}

    context = examine({}, environ)
    failures = [sentence for level, sentence in say(check_options, context) if level == "fail"]

    assert [sentence.split(",")[0] for sentence in failures] == [
        "environment GRPC_PORT is 'x'",
        "environment PORT is 'tcp://10.0.0.1:80'",
        "--quantize gptq: no engine in this version loads quantized weights; leave it out.",
    ]
    assert "enableServiceLinks: false" in failures[1]
    assert (context.config.port, context.config.max_batch_size) == (3000, 7)


def test_a_flag_hides_a_wrong_variable():
    assert examine({"port": "8080"}, {"PORT": "tcp://10.0.0.1:80"}).refused == ()


def test_settings_of_the_original_without_effect_are_warned_of():
    assert complaints(check_options, make_context({"MAX_WAITING_TOKENS": "5"})) == [
        "environment MAX_WAITING_TOKENS has no effect: prefill and decode share every step."
    ]


def test_what_is_given_is_listed_without_values():
    assert say(check_options, make_context({"MAX_BATCH_SIZE": "7"})) == [
        ("ok", "Options that are given: max_batch_size.")
    ]


# -- almost options


@pytest.mark.parametrize(
    ("name", "fix"),
    [
        ("MAX_SEQ_LENGTH", "Did you mean MAX_SEQUENCE_LENGTH?"),
        ("MAX_CONCURENT_REQUESTS", "Did you mean MAX_CONCURRENT_REQUESTS?"),
        ("TGIS_FOO_BAR", "`tgis config show` lists them."),
    ],
)
def test_a_variable_that_is_almost_an_option_is_warned_of(name: str, fix: str):
    assert complaints(check_misspelt, make_context({name: "1"})) == [f"The variable {name} is no option. {fix}"]


@pytest.mark.parametrize(
    "name",
    [
        *("MAX_SEQUENCE_LENGTH", "MAX_BATCH_WEIGHT", "TERMINATION_LOG_DIR", "OTEL_SERVICE_NAME", "HOSTNAME", "PORTS"),
        *("TGIS_PORT_8033_TCP_ADDR", "TGIS_SERVICE_PORT", "KUBERNETES_SERVICE_HOST"),
    ],
)
def test_options_of_today_and_of_the_original_and_names_of_others_are_not(name: str):
    assert complaints(check_misspelt, make_context({name: "2"})) == []


# -- burdens and paths


@pytest.mark.parametrize(
    ("name", "value", "effect"),
    [
        ("CUDA_LAUNCH_BLOCKING", "1", "lets the CPU wait for every operation of the GPU"),
        ("NCCL_DEBUG", "INFO", "fills the log"),
        ("MALLOC_PERTURB_", "42", "overwrites all memory that is freed"),
    ],
)
def test_what_slows_down_is_warned_of(name: str, value: str, effect: str):
    assert complaints(check_burdens, make_context({name: value}, gpus=GPUS)) == [
        f"{name}={value} {effect}. Remove it, unless you are looking for an error."
    ]


@pytest.mark.parametrize(("name", "value"), [("CUDA_LAUNCH_BLOCKING", "0"), ("NCCL_DEBUG", "WARN"), ("NCCL_ALGO", "x")])
def test_what_is_switched_off_is_no_burden(name: str, value: str):
    assert complaints(check_burdens, make_context({name: value}, gpus=GPUS)) == []


def test_what_only_slows_gpus_does_not_matter_to_a_cpu():
    environ = {"CUDA_LAUNCH_BLOCKING": "1", "PYTHONDEVMODE": "1"}

    assert complaints(check_burdens, make_context(environ)) == [
        "PYTHONDEVMODE=1 checks every call of Python. Remove it, unless you are looking for an error."
    ]


def test_settings_of_the_allocator_are_shown_where_there_is_one():
    environ = {"PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:64"}

    assert say(check_burdens, make_context(environ, gpus=GPUS)) == [
        ("ok", "PYTORCH_CUDA_ALLOC_CONF is 'max_split_size_mb:64'.")
    ]
    assert say(check_burdens, make_context(environ)) == []


def test_a_module_in_pythonpath_that_hides_ours_is_named(tmp_path: Path):
    (tmp_path / "grpc.py").touch()
    (tmp_path / "other.py").touch()

    assert complaints(check_paths, make_context({"PYTHONPATH": f"/nowhere:{tmp_path}"})) == [
        f"PYTHONPATH has {tmp_path}, where grpc is found before the installed one. Remove it, unless that is wanted."
    ]


def test_libraries_of_another_cuda_are_named(tmp_path: Path):
    (tmp_path / "libcudart.so.11.0").touch()

    assert complaints(check_paths, make_context({"LD_LIBRARY_PATH": f"{tmp_path}:/nowhere"}, gpus=GPUS)) == [
        f"LD_LIBRARY_PATH has {tmp_path}, where libcudart.so.11.0 may be loaded in place of torch's own. Remove that "
        "directory; the driver's library is found without it."
    ]


def test_paths_without_such_things_are_no_matter(tmp_path: Path):
    environ = {"PYTHONPATH": str(tmp_path), "LD_LIBRARY_PATH": str(tmp_path)}

    assert say(check_paths, make_context(environ, gpus=GPUS)) == []


# -- hub and proxies


def test_a_token_is_told_of_and_never_shown():
    environ = {"HF_TOKEN": "hf_canary", "HF_ENDPOINT": "https://me:word@mirror", "HF_HUB_OFFLINE": "1"}

    assert say(check_hub, make_context(environ)) == [
        ("ok", "For downloads: HF_HUB_OFFLINE=1, HF_ENDPOINT=https://***@mirror, HF_TOKEN is set (and not shown).")
    ]


def test_a_proxy_that_spans_would_go_through_is_warned_of():
    environ = {"https_proxy": "http://me:word@proxy:3128", "NO_PROXY": "127.0.0.0/8", "OTLP_ENDPOINT": "collector:4317"}

    assert complaints(check_proxies, make_context(environ)) == [
        "https_proxy=http://***@proxy:3128, and NO_PROXY does not name collector: spans for --otlp-endpoint go through "
        "the proxy. Add collector to NO_PROXY."
    ]


@pytest.mark.parametrize("endpoint", ["localhost:4317", "http://me:word@127.0.0.1:4317", "collector.ns.svc:4317"])
def test_a_proxy_for_others_is_fine(endpoint: str):
    environ = {"HTTPS_PROXY": "http://proxy:3128", "no_proxy": ".svc", "OTLP_ENDPOINT": endpoint}

    assert say(check_proxies, make_context(environ)) == [
        ("ok", "HTTPS_PROXY=http://proxy:3128; local calls go past it.")
    ]
