"""Settings of the original: all are known, and using one that no longer works as it did gives one warning."""

from __future__ import annotations

import pytest

from tgis_cli.decide.legacy_settings import BY_NAME, SETTINGS, Treatment, warn_of_settings
from tgis_server.options import load_config, options


def warnings_of(environ: dict[str, str], **flags: str) -> list[str]:
    return list(warn_of_settings(load_config(flags, environ), environ))


@pytest.mark.parametrize(
    ("environ", "warning"),
    [
        ({"FLASH_ATTENTION": "true"}, "has no effect: attention is always paged and without padding."),
        ({"MAX_WAITING_TOKENS": "20"}, "has no effect: prefill and decode share every step."),
        ({"MAX_PREFILL_PADDING": "0.3"}, "has no effect: prompts are not padded."),
        ({"MAX_BATCH_WEIGHT": "9"}, "has no effect: free memory is measured after loading, not estimated."),
        ({"PT2_COMPILE": "yes"}, "has no effect: models are not compiled, so startup is fast."),
        ({"TRUST_REMOTE_CODE": "true"}, "has no effect: code that is part of a model is never run."),
        ({"DTYPE_STR": "float16"}, "is deprecated: use --dtype."),
        ({"TRANSFORMERS_CACHE": "/cache"}, "is deprecated: use HF_HUB_CACHE."),
        (
            {"PREFIX_STORE_PATH": "/prompts"},
            "asks for a feature that this version lacks: requests with a prefix_id fail: "
            "tuned prompts are not supported.",
        ),
    ],
)
def test_a_setting_that_no_longer_does_what_it_did_gives_one_warning(environ: dict[str, str], warning: str):
    assert warnings_of(environ) == [f"environment {next(iter(environ))} {warning}"]


@pytest.mark.parametrize(
    "environ",
    [
        {"FLASH_ATTENTION": "False"},
        {"ESTIMATE_MEMORY": "auto"},
        {"MAX_WAITING_TOKENS": "24"},
        {"MAX_BATCH_WEIGHT": " "},
        {"NUM_SHARD": "1", "GRPC_PORT": "8033", "HTTP_PROXY": "x"},
        {"RANK": "0", "WORLD_SIZE": "1", "RUST_BACKTRACE": "1"},
    ],
)
def test_a_setting_that_works_or_asks_for_nothing_gives_no_warning(environ: dict[str, str]):
    assert warnings_of(environ) == []


def test_a_flag_is_named_as_a_flag():
    assert warnings_of({}, master_port="1") == [
        "flag --master-port has no effect: shards on one machine connect through the run directory."
    ]


def test_every_setting_has_one_row_with_a_sentence():
    assert len(BY_NAME) == len(SETTINGS)
    assert [setting.name for setting in SETTINGS if not setting.now.endswith(".")] == []


def test_every_option_without_effect_is_in_the_table():
    accepted = {option.env for option in options() if option.opt.group == "Accepted, without effect"}

    assert accepted == {
        setting.name for setting in SETTINGS if setting.option and setting.treatment is Treatment.NO_EFFECT
    }
