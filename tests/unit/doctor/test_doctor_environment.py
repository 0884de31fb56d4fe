"""The doctor's checks of environment variables."""

from __future__ import annotations

from pathlib import Path

import pytest

from doctor_subject import GPUS, complaints, judge, make_subject
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


def test_variables_that_a_start_would_refuse_are_failures_and_the_others_are_used(tmp_path: Path):
    environ = {"PORT": "tcp://10.0.0.1:80", "GRPC_PORT": "x", "MAX_BATCH_SIZE": "7", "QUANTIZE": "gptq"}

    subject = examine({}, environ)
    failures = [sentence for level, sentence in judge(check_options, subject) if level == "fail"]

    assert [sentence.split(",")[0] for sentence in failures] == [
        "The variable GRPC_PORT is 'x'",
        "The variable PORT is 'tcp://10.0.0.1:80'",
        "--quantize gptq: no engine in this version loads quantized weights; leave it out.",
    ]
    assert "enableServiceLinks: false" in failures[1]
    assert (subject.config.port, subject.config.max_batch_size) == (3000, 7)


def test_a_flag_overrides_an_invalid_variable():
    assert examine({"port": "8080"}, {"PORT": "tcp://10.0.0.1:80"}).refused == ()


def test_settings_of_the_original_without_effect_are_warnings():
    assert complaints(check_options, make_subject({"MAX_WAITING_TOKENS": "5"})) == [
        "environment MAX_WAITING_TOKENS has no effect: prefill and decode share every step."
    ]


def test_given_options_are_listed_without_values():
    assert judge(check_options, make_subject({"MAX_BATCH_SIZE": "7"})) == [("ok", "Options given: max_batch_size.")]


# -- misspelt options


@pytest.mark.parametrize(
    ("name", "fix"),
    [
        ("MAX_SEQ_LENGTH", "Did you mean MAX_SEQUENCE_LENGTH?"),
        ("MAX_CONCURENT_REQUESTS", "Did you mean MAX_CONCURRENT_REQUESTS?"),
        ("TGIS_FOO_BAR", "`tgis config show` lists the options."),
    ],
)
def test_a_variable_that_looks_like_an_option_is_a_warning(name: str, fix: str):
    assert complaints(check_misspelt, make_subject({name: "1"})) == [f"The variable {name} is not an option. {fix}"]


@pytest.mark.parametrize(
    "name",
    [
        *("MAX_SEQUENCE_LENGTH", "MAX_BATCH_WEIGHT", "TERMINATION_LOG_DIR", "OTEL_SERVICE_NAME", "HOSTNAME", "PORTS"),
        *("TGIS_PORT_8033_TCP_ADDR", "TGIS_SERVICE_PORT", "KUBERNETES_SERVICE_HOST"),
    ],
)
def test_old_and_new_options_and_other_programs_variables_are_accepted(name: str):
    assert complaints(check_misspelt, make_subject({name: "2"})) == []


# -- burdens and paths


@pytest.mark.parametrize(
    ("name", "value", "effect"),
    [
        ("CUDA_LAUNCH_BLOCKING", "1", "makes the CPU wait for every GPU operation"),
        ("NCCL_DEBUG", "INFO", "fills the log"),
        ("MALLOC_PERTURB_", "42", "overwrites all freed memory"),
    ],
)
def test_a_debugging_variable_is_a_warning(name: str, value: str, effect: str):
    assert complaints(check_burdens, make_subject({name: value}, gpus=GPUS)) == [
        f"{name}={value} {effect}. Remove it unless you are debugging."
    ]


@pytest.mark.parametrize(("name", "value"), [("CUDA_LAUNCH_BLOCKING", "0"), ("NCCL_DEBUG", "WARN"), ("NCCL_ALGO", "x")])
def test_a_debugging_variable_that_is_off_is_fine(name: str, value: str):
    assert complaints(check_burdens, make_subject({name: value}, gpus=GPUS)) == []


def test_gpu_variables_do_not_matter_to_a_cpu():
    environ = {"CUDA_LAUNCH_BLOCKING": "1", "PYTHONDEVMODE": "1"}

    assert complaints(check_burdens, make_subject(environ)) == [
        "PYTHONDEVMODE=1 enables Python's debug checks. Remove it unless you are debugging."
    ]


def test_allocator_settings_are_shown_if_gpus_are_used():
    environ = {"PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:64"}

    assert judge(check_burdens, make_subject(environ, gpus=GPUS)) == [
        ("ok", "PYTORCH_CUDA_ALLOC_CONF is 'max_split_size_mb:64'.")
    ]
    assert judge(check_burdens, make_subject(environ)) == []


def test_a_module_in_pythonpath_that_hides_ours_is_named(tmp_path: Path):
    (tmp_path / "grpc.py").touch()
    (tmp_path / "other.py").touch()

    assert complaints(check_paths, make_subject({"PYTHONPATH": f"/nowhere:{tmp_path}"})) == [
        f"PYTHONPATH has {tmp_path}, which shadows the installed grpc. Remove it unless that is intended."
    ]


def test_libraries_of_another_cuda_are_named(tmp_path: Path):
    (tmp_path / "libcudart.so.11.0").touch()

    assert complaints(check_paths, make_subject({"LD_LIBRARY_PATH": f"{tmp_path}:/nowhere"}, gpus=GPUS)) == [
        f"LD_LIBRARY_PATH has {tmp_path}: its libcudart.so.11.0 may be loaded instead of torch's. Remove that "
        "directory; the driver's library is found without it."
    ]


def test_paths_that_hide_nothing_are_fine(tmp_path: Path):
    environ = {"PYTHONPATH": str(tmp_path), "LD_LIBRARY_PATH": str(tmp_path)}

    assert judge(check_paths, make_subject(environ, gpus=GPUS)) == []


# -- hub and proxies


def test_a_token_is_mentioned_but_not_shown():
    environ = {"HF_TOKEN": "hf_canary", "HF_ENDPOINT": "https://me:word@mirror", "HF_HUB_OFFLINE": "1"}

    assert judge(check_hub, make_subject(environ)) == [
        ("ok", "For downloads: HF_HUB_OFFLINE=1, HF_ENDPOINT=https://***@mirror, HF_TOKEN is set (and not shown).")
    ]


def test_a_proxy_that_spans_go_through_is_a_warning():
    environ = {"https_proxy": "http://me:word@proxy:3128", "NO_PROXY": "127.0.0.0/8", "OTLP_ENDPOINT": "collector:4317"}

    assert complaints(check_proxies, make_subject(environ)) == [
        "https_proxy=http://***@proxy:3128, and NO_PROXY does not name collector: spans for --otlp-endpoint go through "
        "the proxy. Add collector to NO_PROXY."
    ]


@pytest.mark.parametrize("endpoint", ["localhost:4317", "http://me:word@127.0.0.1:4317", "collector.ns.svc:4317"])
def test_a_proxy_that_spans_bypass_is_fine(endpoint: str):
    environ = {"HTTPS_PROXY": "http://proxy:3128", "no_proxy": ".svc", "OTLP_ENDPOINT": endpoint}

    assert judge(check_proxies, make_subject(environ)) == [
        ("ok", "HTTPS_PROXY=http://proxy:3128; local calls bypass it.")
    ]
