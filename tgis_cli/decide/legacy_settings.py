"""Every setting of the original (launcher, router, shard server, its vLLM adapter), and what became of it.

The source of the warnings at startup, of ``tgis migrate``, and of the table in docs/migration.md. Notes say only what
differs; what a setting does is documented in ``tgis_server.options``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum

from tgis_server.options import FALSE_WORDS, LoadedConfig, Option, options


class Treatment(StrEnum):
    """What became of a setting."""

    SAME = "same"
    RENAMED = "renamed"  # works, but the newer name is preferred
    NO_EFFECT = "no effect"  # accepted, but there is nothing left to set
    NOT_YET = "not there yet"  # accepted, but the feature is missing
    REFUSED = "refused"  # the server does not start


OPTIONS_BY_ENV = {option.env: option for option in options()}
OFF = tuple(FALSE_WORDS)  # values that leave the switch of a missing feature off
ANY = ("*",)


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting, identified by its environment variable."""

    name: str
    treatment: Treatment
    note: str = ""  # one sentence on what differs and why; for RENAMED, the newer name
    unset: str = ""  # the default, if it has changed
    quiet: tuple[str, ...] = ()  # values, in lower case, that need no warning

    @property
    def option(self) -> Option | None:
        """The option of ``tgis launch`` that has this name."""
        return OPTIONS_BY_ENV.get(self.name)

    @property
    def flag(self) -> str:
        return self.option.flag if self.option else ""

    @property
    def now(self) -> str:
        """What the setting does now, in a sentence."""
        if self.treatment is Treatment.RENAMED:
            return f"Works; the newer name is {self.note}."
        if self.treatment is Treatment.SAME:
            return f"As before. {self.note}".strip()
        return self.note or (self.option.opt.help if self.option else "")

    def is_quiet(self, value: str) -> bool:
        return self.quiet == ANY or value.strip().lower() in ("", *self.quiet)

    def warn(self, origin: str) -> str:
        """The warning logged at startup; ``origin`` is "environment NAME" or "flag --name"."""
        match self.treatment:
            case Treatment.RENAMED:
                return f"{origin} is deprecated: use {self.note}."
            case Treatment.NOT_YET:
                return f"{origin} asks for a feature that this version lacks: {lower_first(self.now)}"
            case _:
                return f"{origin} has no effect: {lower_first(self.now)}"


def lower_first(sentence: str) -> str:
    return sentence if sentence[:2].isupper() else sentence[0].lower() + sentence[1:]


def same(name: str, note: str = "", unset: str = "") -> Setting:
    return Setting(name, Treatment.SAME, note, unset)


def renamed(name: str, newer: str) -> Setting:
    return Setting(name, Treatment.RENAMED, newer)


def no_effect(name: str, why: str = "", quiet: tuple[str, ...] = ()) -> Setting:
    return Setting(name, Treatment.NO_EFFECT, why, quiet=quiet)


def not_yet(name: str, loss: str, quiet: tuple[str, ...] = ()) -> Setting:
    return Setting(name, Treatment.NOT_YET, loss, quiet=quiet)


MEASURED = "Free memory is measured after loading, not estimated."
NO_PADDING = "Batches have no padding."
NO_QUANTIZED = "No engine of this version loads quantized weights."
NO_ONNX = "This version has no ONNX engine."
NO_SPECULATOR = "Answers are the same without speculative decoding, only slower."
NO_PREFIXES = "Requests with a prefix_id fail: tuned prompts are not supported."
ALWAYS_PAGED = "Attention is always paged and without padding."

SETTINGS = (
    # the launcher
    same("MODEL_NAME"),
    same("REVISION"),
    same(
        "DEPLOYMENT_FRAMEWORK",
        "The native engine serves each model that it supports, whatever engine is named; others are refused.",
    ),
    same("DTYPE", unset="the checkpoint's own instead of float16."),
    renamed("DTYPE_STR", "--dtype"),
    Setting("QUANTIZE", Treatment.REFUSED),
    same("NUM_SHARD"),
    renamed("NUM_GPUS", "--num-shard"),
    same("MAX_CONCURRENT_REQUESTS"),
    same("MAX_SEQUENCE_LENGTH"),
    same("MAX_NEW_TOKENS"),
    same("MAX_BATCH_SIZE", unset="256 instead of 12, as KV blocks limit memory use."),
    no_effect("MAX_PREFILL_PADDING", quiet=("0.2",)),
    same("BATCH_SAFETY_MARGIN"),
    no_effect("MAX_WAITING_TOKENS", quiet=("24",)),
    same("PORT"),
    same("GRPC_PORT"),
    same("SHARD_UDS_PATH"),
    no_effect("MASTER_ADDR", quiet=("localhost",)),
    no_effect("MASTER_PORT", quiet=("29500",)),
    same("JSON_OUTPUT"),
    same("TLS_CERT_PATH", "Reloaded when it changes."),
    same("TLS_KEY_PATH", "Reloaded when it changes."),
    same("TLS_CLIENT_CA_CERT_PATH", "Reloaded when it changes."),
    same("OUTPUT_SPECIAL_TOKENS"),
    same("CUDA_PROCESS_MEMORY_FRACTION"),
    same("DEFAULT_INCLUDE_STOP_SEQS"),
    same("OTLP_ENDPOINT", "Needs the extra tgis[tracing]."),
    same("OTLP_SERVICE_NAME"),
    # the router
    same("TOKENIZATION_WORKERS"),
    same("LOG_LEVEL", "Also applies to launcher and shards; if a filter has several levels, the general one counts."),
    same("OTEL_SERVICE_NAME", "Used if OTLP_SERVICE_NAME is not set."),
    no_effect(
        "OTEL_PROPAGATORS", "W3C traceparent is always accepted.", quiet=("tracecontext", "tracecontext,baggage")
    ),
    no_effect("MASTER_SHARD_UDS_PATH", "The launcher tells the front-end where the sockets are.", quiet=ANY),
    no_effect("TOKENIZER_PATH", "The model directory's tokenizer.json is used."),
    no_effect("MAX_BATCH_WEIGHT", MEASURED),
    no_effect("MAX_PREFILL_WEIGHT", MEASURED),
    # model cache and devices
    same("HF_HUB_CACHE"),
    renamed("TRANSFORMERS_CACHE", "HF_HUB_CACHE"),
    renamed("HUGGINGFACE_HUB_CACHE", "HF_HUB_CACHE"),
    same("HF_HOME"),
    same("CUDA_VISIBLE_DEVICES"),
    same("NVIDIA_VISIBLE_DEVICES", "With `all`, every GPU counts, not just one."),
    same("PYTORCH_CUDA_ALLOC_CONF"),
    # the shard server
    no_effect("RANK", "The launcher numbers the shards.", quiet=ANY),
    no_effect("WORLD_SIZE", "The launcher numbers the shards.", quiet=ANY),
    no_effect("TRUST_REMOTE_CODE", "Code that is part of a model is never run.", quiet=OFF),
    no_effect("FLASH_ATTENTION", ALWAYS_PAGED, quiet=OFF),
    no_effect("PAGED_ATTENTION", ALWAYS_PAGED, quiet=OFF),
    no_effect("PT2_COMPILE", "Models are not compiled, so startup is fast.", quiet=OFF),
    no_effect("CUDA_PAD_TO_MULT_OF_8", NO_PADDING, quiet=("true",)),
    no_effect("COMPACT_BEFORE_PREFILL", NO_PADDING, quiet=("true",)),
    no_effect("TRANSFORMERS_ATTN_IMPL", ALWAYS_PAGED),
    no_effect("BLOOM_SLOW_BUT_EXACT", "The native engine has only one way to compute BLOOM.", quiet=OFF),
    no_effect("DISABLE_CUSTOM_KERNELS", "There are no custom kernels to disable.", quiet=OFF),
    no_effect("DISABLE_EXLLAMA", NO_QUANTIZED, quiet=OFF),
    no_effect("EXLLAMA_VERSION", NO_QUANTIZED, quiet=("2",)),
    no_effect("GPTQ_CUDA_TYPE", NO_QUANTIZED, quiet=("exllama",)),
    no_effect("MERGE_ONNX_GRAPHS", NO_ONNX, quiet=OFF),
    no_effect("OPTIMIZE_ONNX_MODEL", NO_ONNX, quiet=OFF),
    no_effect("FP32_LOGITS_PROCESS", "Logits are always processed as float32.", quiet=ANY),
    not_yet("PREFIX_STORE_PATH", NO_PREFIXES),
    not_yet("PROMPT_CACHE_SIZE_MB", NO_PREFIXES),
    not_yet("MAX_PROMPT_PREFIX_LENGTH", NO_PREFIXES),
    no_effect("ESTIMATE_MEMORY", MEASURED, quiet=("auto",)),
    no_effect("ESTIMATE_MEMORY_BATCH_SIZE", MEASURED),
    no_effect("ESTIMATE_MEMORY_MIN_SAMPLES", MEASURED),
    no_effect("ESTIMATE_MEMORY_START_SEQ_LEN", MEASURED),
    no_effect("ESTIMATE_MEMORY_STOP_SEQ_LEN", MEASURED),
    no_effect("ESTIMATE_MEMORY_FIT_THRESHOLD", MEASURED),
    no_effect("ESTIMATE_MEMORY_NEW_TOKENS", MEASURED),
    no_effect("ESTIMATE_MEMORY_NEW_TOKEN_SAMPLES", MEASURED),
    not_yet("SPECULATOR_NAME", NO_SPECULATOR),
    not_yet("SPECULATOR_REVISION", NO_SPECULATOR),
    not_yet("SPECULATOR_N_CANDIDATES", NO_SPECULATOR),
    not_yet("SPECULATOR_TOP_K_TOKENS_PER_HEAD", NO_SPECULATOR),
    not_yet("SPECULATOR_MAX_BATCH_SIZE", NO_SPECULATOR),
    no_effect("KV_CACHE_MANAGER_NUM_GPU_BLOCKS", "KV blocks fill free memory; --kv-cache-memory sets their size."),
    no_effect("LOG_GPU_USAGE_INTERVAL", "GPU memory is not logged: see nvidia-smi or DCGM.", quiet=("0",)),
    no_effect("DEBUG", "There are no fake process groups; --log-level debug logs more.", quiet=ANY),
    no_effect("RUST_BACKTRACE", "Tracebacks of failures are in the run directory.", quiet=ANY),
    no_effect("GIT_COMMIT_HASH", "Only for building the original.", quiet=ANY),
    no_effect("BUILD_EXTENSIONS", "Only for building the original.", quiet=ANY),
    # the vLLM adapter
    not_yet("ADD_SPECIAL_TOKENS", "Inputs always get special tokens: answers differ.", quiet=("true", "1")),
    renamed("TERMINATION_LOG_DIR", "--termination-log"),
    not_yet("ADAPTER_CACHE", "Requests with an adapter_id fail."),
    no_effect("ENABLE_VLLM_LOG_REQUESTS", "Each input is logged in one line, without its text.", quiet=("false", "0")),
    no_effect("DISABLE_PROMPT_LOGPROBS", "Details of input tokens are always available.", quiet=("false", "0")),
)

BY_NAME = {setting.name: setting for setting in SETTINGS}


def warn_of_settings(loaded: LoadedConfig, environ: Mapping[str, str]) -> Iterator[str]:
    """A warning for each given setting that no longer does what it did."""
    for setting in SETTINGS:
        if setting.treatment in (Treatment.SAME, Treatment.REFUSED):
            continue
        if setting.option:
            origin, value = loaded.origins[setting.option.name], str(getattr(loaded.config, setting.option.name))
        else:
            origin, value = f"environment {setting.name}", environ.get(setting.name, "")
        if origin != "default" and not setting.is_quiet(value):
            yield setting.warn(origin)
