from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class EndRequest(_message.Message):
    __slots__ = ("cause",)
    CAUSE_FIELD_NUMBER: _ClassVar[int]
    cause: str
    def __init__(self, cause: _Optional[str] = ...) -> None: ...

class EndReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Phase(_message.Message):
    __slots__ = ("name", "started_at_s", "bytes")
    NAME_FIELD_NUMBER: _ClassVar[int]
    STARTED_AT_S_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    name: str
    started_at_s: float
    bytes: int
    def __init__(self, name: _Optional[str] = ..., started_at_s: _Optional[float] = ..., bytes: _Optional[int] = ...) -> None: ...

class FrontendHealth(_message.Message):
    __slots__ = ("state", "text", "grpc_port", "http_port", "in_flight", "phases", "loop_age_s")
    class State(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        STARTING: _ClassVar[FrontendHealth.State]
        SERVING: _ClassVar[FrontendHealth.State]
        DRAINING: _ClassVar[FrontendHealth.State]
        FAILED: _ClassVar[FrontendHealth.State]
    STARTING: FrontendHealth.State
    SERVING: FrontendHealth.State
    DRAINING: FrontendHealth.State
    FAILED: FrontendHealth.State
    STATE_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    GRPC_PORT_FIELD_NUMBER: _ClassVar[int]
    HTTP_PORT_FIELD_NUMBER: _ClassVar[int]
    IN_FLIGHT_FIELD_NUMBER: _ClassVar[int]
    PHASES_FIELD_NUMBER: _ClassVar[int]
    LOOP_AGE_S_FIELD_NUMBER: _ClassVar[int]
    state: FrontendHealth.State
    text: str
    grpc_port: int
    http_port: int
    in_flight: int
    phases: _containers.RepeatedCompositeFieldContainer[Phase]
    loop_age_s: float
    def __init__(self, state: _Optional[_Union[FrontendHealth.State, str]] = ..., text: _Optional[str] = ..., grpc_port: _Optional[int] = ..., http_port: _Optional[int] = ..., in_flight: _Optional[int] = ..., phases: _Optional[_Iterable[_Union[Phase, _Mapping]]] = ..., loop_age_s: _Optional[float] = ...) -> None: ...

class InfoRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class InfoReply(_message.Message):
    __slots__ = ("model_type", "dtype", "device", "vocab_size", "weight_bytes", "num_blocks", "block_size", "max_sequence_length", "notes", "end_ids", "kernels")
    MODEL_TYPE_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    VOCAB_SIZE_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_BYTES_FIELD_NUMBER: _ClassVar[int]
    NUM_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    BLOCK_SIZE_FIELD_NUMBER: _ClassVar[int]
    MAX_SEQUENCE_LENGTH_FIELD_NUMBER: _ClassVar[int]
    NOTES_FIELD_NUMBER: _ClassVar[int]
    END_IDS_FIELD_NUMBER: _ClassVar[int]
    KERNELS_FIELD_NUMBER: _ClassVar[int]
    model_type: str
    dtype: str
    device: str
    vocab_size: int
    weight_bytes: int
    num_blocks: int
    block_size: int
    max_sequence_length: int
    notes: _containers.RepeatedScalarFieldContainer[str]
    end_ids: _containers.RepeatedScalarFieldContainer[int]
    kernels: str
    def __init__(self, model_type: _Optional[str] = ..., dtype: _Optional[str] = ..., device: _Optional[str] = ..., vocab_size: _Optional[int] = ..., weight_bytes: _Optional[int] = ..., num_blocks: _Optional[int] = ..., block_size: _Optional[int] = ..., max_sequence_length: _Optional[int] = ..., notes: _Optional[_Iterable[str]] = ..., end_ids: _Optional[_Iterable[int]] = ..., kernels: _Optional[str] = ...) -> None: ...

class HealthRequest(_message.Message):
    __slots__ = ("is_onlooker",)
    IS_ONLOOKER_FIELD_NUMBER: _ClassVar[int]
    is_onlooker: bool
    def __init__(self, is_onlooker: bool = ...) -> None: ...

class HealthReply(_message.Message):
    __slots__ = ("state", "phase", "done", "total", "progress_count", "executed_steps", "step_age_s", "tick_age_s", "phases", "allowance_s", "pid")
    class State(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        LOADING: _ClassVar[HealthReply.State]
        WARMING_UP: _ClassVar[HealthReply.State]
        SERVING: _ClassVar[HealthReply.State]
    LOADING: HealthReply.State
    WARMING_UP: HealthReply.State
    SERVING: HealthReply.State
    STATE_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_COUNT_FIELD_NUMBER: _ClassVar[int]
    EXECUTED_STEPS_FIELD_NUMBER: _ClassVar[int]
    STEP_AGE_S_FIELD_NUMBER: _ClassVar[int]
    TICK_AGE_S_FIELD_NUMBER: _ClassVar[int]
    PHASES_FIELD_NUMBER: _ClassVar[int]
    ALLOWANCE_S_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    state: HealthReply.State
    phase: str
    done: int
    total: int
    progress_count: int
    executed_steps: int
    step_age_s: float
    tick_age_s: float
    phases: _containers.RepeatedCompositeFieldContainer[Phase]
    allowance_s: float
    pid: int
    def __init__(self, state: _Optional[_Union[HealthReply.State, str]] = ..., phase: _Optional[str] = ..., done: _Optional[int] = ..., total: _Optional[int] = ..., progress_count: _Optional[int] = ..., executed_steps: _Optional[int] = ..., step_age_s: _Optional[float] = ..., tick_age_s: _Optional[float] = ..., phases: _Optional[_Iterable[_Union[Phase, _Mapping]]] = ..., allowance_s: _Optional[float] = ..., pid: _Optional[int] = ...) -> None: ...

class ToEngine(_message.Message):
    __slots__ = ("submits", "cancels")
    SUBMITS_FIELD_NUMBER: _ClassVar[int]
    CANCELS_FIELD_NUMBER: _ClassVar[int]
    submits: _containers.RepeatedCompositeFieldContainer[Submit]
    cancels: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, submits: _Optional[_Iterable[_Union[Submit, _Mapping]]] = ..., cancels: _Optional[_Iterable[int]] = ...) -> None: ...

class Submit(_message.Message):
    __slots__ = ("request_id", "prompt_ids", "max_new_tokens", "sampling", "wanted", "seed", "end_ids", "num_virtual", "encoder_ids", "num_encoder_virtual", "adapter", "grammar", "cache_salt", "deadline")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    PROMPT_IDS_FIELD_NUMBER: _ClassVar[int]
    MAX_NEW_TOKENS_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    WANTED_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    END_IDS_FIELD_NUMBER: _ClassVar[int]
    NUM_VIRTUAL_FIELD_NUMBER: _ClassVar[int]
    ENCODER_IDS_FIELD_NUMBER: _ClassVar[int]
    NUM_ENCODER_VIRTUAL_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    GRAMMAR_FIELD_NUMBER: _ClassVar[int]
    CACHE_SALT_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_FIELD_NUMBER: _ClassVar[int]
    request_id: int
    prompt_ids: bytes
    max_new_tokens: int
    sampling: SamplingParams
    wanted: Wanted
    seed: int
    end_ids: _containers.RepeatedScalarFieldContainer[int]
    num_virtual: int
    encoder_ids: bytes
    num_encoder_virtual: int
    adapter: Adapter
    grammar: Grammar
    cache_salt: bytes
    deadline: float
    def __init__(self, request_id: _Optional[int] = ..., prompt_ids: _Optional[bytes] = ..., max_new_tokens: _Optional[int] = ..., sampling: _Optional[_Union[SamplingParams, _Mapping]] = ..., wanted: _Optional[_Union[Wanted, _Mapping]] = ..., seed: _Optional[int] = ..., end_ids: _Optional[_Iterable[int]] = ..., num_virtual: _Optional[int] = ..., encoder_ids: _Optional[bytes] = ..., num_encoder_virtual: _Optional[int] = ..., adapter: _Optional[_Union[Adapter, _Mapping]] = ..., grammar: _Optional[_Union[Grammar, _Mapping]] = ..., cache_salt: _Optional[bytes] = ..., deadline: _Optional[float] = ...) -> None: ...

class Adapter(_message.Message):
    __slots__ = ("id", "kind", "digest", "path")
    ID_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    id: str
    kind: str
    digest: bytes
    path: str
    def __init__(self, id: _Optional[str] = ..., kind: _Optional[str] = ..., digest: _Optional[bytes] = ..., path: _Optional[str] = ...) -> None: ...

class Grammar(_message.Message):
    __slots__ = ("kind", "text")
    KIND_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    kind: str
    text: str
    def __init__(self, kind: _Optional[str] = ..., text: _Optional[str] = ...) -> None: ...

class SamplingParams(_message.Message):
    __slots__ = ("temperature", "top_k", "top_p", "typical_p", "repetition_penalty", "length_penalty", "min_new_tokens")
    class LengthPenalty(_message.Message):
        __slots__ = ("start_index", "decay_factor")
        START_INDEX_FIELD_NUMBER: _ClassVar[int]
        DECAY_FACTOR_FIELD_NUMBER: _ClassVar[int]
        start_index: int
        decay_factor: float
        def __init__(self, start_index: _Optional[int] = ..., decay_factor: _Optional[float] = ...) -> None: ...
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    TOP_P_FIELD_NUMBER: _ClassVar[int]
    TYPICAL_P_FIELD_NUMBER: _ClassVar[int]
    REPETITION_PENALTY_FIELD_NUMBER: _ClassVar[int]
    LENGTH_PENALTY_FIELD_NUMBER: _ClassVar[int]
    MIN_NEW_TOKENS_FIELD_NUMBER: _ClassVar[int]
    temperature: float
    top_k: int
    top_p: float
    typical_p: float
    repetition_penalty: float
    length_penalty: SamplingParams.LengthPenalty
    min_new_tokens: int
    def __init__(self, temperature: _Optional[float] = ..., top_k: _Optional[int] = ..., top_p: _Optional[float] = ..., typical_p: _Optional[float] = ..., repetition_penalty: _Optional[float] = ..., length_penalty: _Optional[_Union[SamplingParams.LengthPenalty, _Mapping]] = ..., min_new_tokens: _Optional[int] = ...) -> None: ...

class Wanted(_message.Message):
    __slots__ = ("logprobs", "ranks", "top_n", "generated_tokens", "input_tokens")
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    RANKS_FIELD_NUMBER: _ClassVar[int]
    TOP_N_FIELD_NUMBER: _ClassVar[int]
    GENERATED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    INPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    logprobs: bool
    ranks: bool
    top_n: int
    generated_tokens: bool
    input_tokens: bool
    def __init__(self, logprobs: bool = ..., ranks: bool = ..., top_n: _Optional[int] = ..., generated_tokens: bool = ..., input_tokens: bool = ...) -> None: ...

class FromEngine(_message.Message):
    __slots__ = ("request_ids", "token_ids", "finish_reasons", "detail_columns", "details", "prompt_details", "started_ids", "started_at_s", "failures", "stats")
    REQUEST_IDS_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    FINISH_REASONS_FIELD_NUMBER: _ClassVar[int]
    DETAIL_COLUMNS_FIELD_NUMBER: _ClassVar[int]
    DETAILS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_DETAILS_FIELD_NUMBER: _ClassVar[int]
    STARTED_IDS_FIELD_NUMBER: _ClassVar[int]
    STARTED_AT_S_FIELD_NUMBER: _ClassVar[int]
    FAILURES_FIELD_NUMBER: _ClassVar[int]
    STATS_FIELD_NUMBER: _ClassVar[int]
    request_ids: _containers.RepeatedScalarFieldContainer[int]
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    finish_reasons: _containers.RepeatedScalarFieldContainer[int]
    detail_columns: _containers.RepeatedScalarFieldContainer[int]
    details: TokenDetails
    prompt_details: _containers.RepeatedCompositeFieldContainer[PromptDetails]
    started_ids: _containers.RepeatedScalarFieldContainer[int]
    started_at_s: _containers.RepeatedScalarFieldContainer[float]
    failures: _containers.RepeatedCompositeFieldContainer[RequestFailure]
    stats: StepStats
    def __init__(self, request_ids: _Optional[_Iterable[int]] = ..., token_ids: _Optional[_Iterable[int]] = ..., finish_reasons: _Optional[_Iterable[int]] = ..., detail_columns: _Optional[_Iterable[int]] = ..., details: _Optional[_Union[TokenDetails, _Mapping]] = ..., prompt_details: _Optional[_Iterable[_Union[PromptDetails, _Mapping]]] = ..., started_ids: _Optional[_Iterable[int]] = ..., started_at_s: _Optional[_Iterable[float]] = ..., failures: _Optional[_Iterable[_Union[RequestFailure, _Mapping]]] = ..., stats: _Optional[_Union[StepStats, _Mapping]] = ...) -> None: ...

class TokenDetails(_message.Message):
    __slots__ = ("logprobs", "ranks", "top_counts", "top_ids", "top_logprobs")
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    RANKS_FIELD_NUMBER: _ClassVar[int]
    TOP_COUNTS_FIELD_NUMBER: _ClassVar[int]
    TOP_IDS_FIELD_NUMBER: _ClassVar[int]
    TOP_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    logprobs: _containers.RepeatedScalarFieldContainer[float]
    ranks: _containers.RepeatedScalarFieldContainer[int]
    top_counts: _containers.RepeatedScalarFieldContainer[int]
    top_ids: _containers.RepeatedScalarFieldContainer[int]
    top_logprobs: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, logprobs: _Optional[_Iterable[float]] = ..., ranks: _Optional[_Iterable[int]] = ..., top_counts: _Optional[_Iterable[int]] = ..., top_ids: _Optional[_Iterable[int]] = ..., top_logprobs: _Optional[_Iterable[float]] = ...) -> None: ...

class PromptDetails(_message.Message):
    __slots__ = ("request_id", "details")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    DETAILS_FIELD_NUMBER: _ClassVar[int]
    request_id: int
    details: TokenDetails
    def __init__(self, request_id: _Optional[int] = ..., details: _Optional[_Union[TokenDetails, _Mapping]] = ...) -> None: ...

class RequestFailure(_message.Message):
    __slots__ = ("request_id", "status", "text")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    request_id: int
    status: str
    text: str
    def __init__(self, request_id: _Optional[int] = ..., status: _Optional[str] = ..., text: _Optional[str] = ...) -> None: ...

class StepStats(_message.Message):
    __slots__ = ("decode_rows", "prefill_rows", "prefill_tokens", "num_running", "num_waiting", "running_tokens", "remaining_tokens", "used_blocks", "num_started", "preemptions", "cached_tokens", "plan_s", "step_s", "forward_s", "out_of_memory", "cached_blocks")
    DECODE_ROWS_FIELD_NUMBER: _ClassVar[int]
    PREFILL_ROWS_FIELD_NUMBER: _ClassVar[int]
    PREFILL_TOKENS_FIELD_NUMBER: _ClassVar[int]
    NUM_RUNNING_FIELD_NUMBER: _ClassVar[int]
    NUM_WAITING_FIELD_NUMBER: _ClassVar[int]
    RUNNING_TOKENS_FIELD_NUMBER: _ClassVar[int]
    REMAINING_TOKENS_FIELD_NUMBER: _ClassVar[int]
    USED_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    NUM_STARTED_FIELD_NUMBER: _ClassVar[int]
    PREEMPTIONS_FIELD_NUMBER: _ClassVar[int]
    CACHED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PLAN_S_FIELD_NUMBER: _ClassVar[int]
    STEP_S_FIELD_NUMBER: _ClassVar[int]
    FORWARD_S_FIELD_NUMBER: _ClassVar[int]
    OUT_OF_MEMORY_FIELD_NUMBER: _ClassVar[int]
    CACHED_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    decode_rows: int
    prefill_rows: int
    prefill_tokens: int
    num_running: int
    num_waiting: int
    running_tokens: int
    remaining_tokens: int
    used_blocks: int
    num_started: int
    preemptions: int
    cached_tokens: int
    plan_s: float
    step_s: float
    forward_s: float
    out_of_memory: bool
    cached_blocks: int
    def __init__(self, decode_rows: _Optional[int] = ..., prefill_rows: _Optional[int] = ..., prefill_tokens: _Optional[int] = ..., num_running: _Optional[int] = ..., num_waiting: _Optional[int] = ..., running_tokens: _Optional[int] = ..., remaining_tokens: _Optional[int] = ..., used_blocks: _Optional[int] = ..., num_started: _Optional[int] = ..., preemptions: _Optional[int] = ..., cached_tokens: _Optional[int] = ..., plan_s: _Optional[float] = ..., step_s: _Optional[float] = ..., forward_s: _Optional[float] = ..., out_of_memory: bool = ..., cached_blocks: _Optional[int] = ...) -> None: ...

class StepPlan(_message.Message):
    __slots__ = ("step", "free", "activate", "new", "slots", "num_tokens", "new_block_counts", "new_blocks", "sample", "encode", "allowance_s")
    STEP_FIELD_NUMBER: _ClassVar[int]
    FREE_FIELD_NUMBER: _ClassVar[int]
    ACTIVATE_FIELD_NUMBER: _ClassVar[int]
    NEW_FIELD_NUMBER: _ClassVar[int]
    SLOTS_FIELD_NUMBER: _ClassVar[int]
    NUM_TOKENS_FIELD_NUMBER: _ClassVar[int]
    NEW_BLOCK_COUNTS_FIELD_NUMBER: _ClassVar[int]
    NEW_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    SAMPLE_FIELD_NUMBER: _ClassVar[int]
    ENCODE_FIELD_NUMBER: _ClassVar[int]
    ALLOWANCE_S_FIELD_NUMBER: _ClassVar[int]
    step: int
    free: _containers.RepeatedScalarFieldContainer[int]
    activate: _containers.RepeatedCompositeFieldContainer[Activation]
    new: _containers.RepeatedCompositeFieldContainer[NewSequence]
    slots: _containers.RepeatedScalarFieldContainer[int]
    num_tokens: _containers.RepeatedScalarFieldContainer[int]
    new_block_counts: _containers.RepeatedScalarFieldContainer[int]
    new_blocks: _containers.RepeatedScalarFieldContainer[int]
    sample: _containers.RepeatedScalarFieldContainer[bool]
    encode: _containers.RepeatedScalarFieldContainer[int]
    allowance_s: float
    def __init__(self, step: _Optional[int] = ..., free: _Optional[_Iterable[int]] = ..., activate: _Optional[_Iterable[_Union[Activation, _Mapping]]] = ..., new: _Optional[_Iterable[_Union[NewSequence, _Mapping]]] = ..., slots: _Optional[_Iterable[int]] = ..., num_tokens: _Optional[_Iterable[int]] = ..., new_block_counts: _Optional[_Iterable[int]] = ..., new_blocks: _Optional[_Iterable[int]] = ..., sample: _Optional[_Iterable[bool]] = ..., encode: _Optional[_Iterable[int]] = ..., allowance_s: _Optional[float] = ...) -> None: ...

class Stage(_message.Message):
    __slots__ = ("adapter",)
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    adapter: Adapter
    def __init__(self, adapter: _Optional[_Union[Adapter, _Mapping]] = ...) -> None: ...

class Acknowledgement(_message.Message):
    __slots__ = ("digest", "rank", "error")
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    RANK_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    digest: bytes
    rank: int
    error: str
    def __init__(self, digest: _Optional[bytes] = ..., rank: _Optional[int] = ..., error: _Optional[str] = ...) -> None: ...

class Activation(_message.Message):
    __slots__ = ("place", "digest")
    PLACE_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    place: int
    digest: bytes
    def __init__(self, place: _Optional[int] = ..., digest: _Optional[bytes] = ...) -> None: ...

class NewSequence(_message.Message):
    __slots__ = ("slot", "token_ids", "prompt_length", "num_cached_tokens", "sampling", "wanted", "seed", "end_ids", "num_virtual", "encoder_ids", "num_encoder_virtual", "cross_blocks", "num_encoder_tokens", "adapter_place", "is_rope_long")
    SLOT_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_LENGTH_FIELD_NUMBER: _ClassVar[int]
    NUM_CACHED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    WANTED_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    END_IDS_FIELD_NUMBER: _ClassVar[int]
    NUM_VIRTUAL_FIELD_NUMBER: _ClassVar[int]
    ENCODER_IDS_FIELD_NUMBER: _ClassVar[int]
    NUM_ENCODER_VIRTUAL_FIELD_NUMBER: _ClassVar[int]
    CROSS_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    NUM_ENCODER_TOKENS_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_PLACE_FIELD_NUMBER: _ClassVar[int]
    IS_ROPE_LONG_FIELD_NUMBER: _ClassVar[int]
    slot: int
    token_ids: bytes
    prompt_length: int
    num_cached_tokens: int
    sampling: SamplingParams
    wanted: Wanted
    seed: int
    end_ids: _containers.RepeatedScalarFieldContainer[int]
    num_virtual: int
    encoder_ids: bytes
    num_encoder_virtual: int
    cross_blocks: _containers.RepeatedScalarFieldContainer[int]
    num_encoder_tokens: int
    adapter_place: int
    is_rope_long: bool
    def __init__(self, slot: _Optional[int] = ..., token_ids: _Optional[bytes] = ..., prompt_length: _Optional[int] = ..., num_cached_tokens: _Optional[int] = ..., sampling: _Optional[_Union[SamplingParams, _Mapping]] = ..., wanted: _Optional[_Union[Wanted, _Mapping]] = ..., seed: _Optional[int] = ..., end_ids: _Optional[_Iterable[int]] = ..., num_virtual: _Optional[int] = ..., encoder_ids: _Optional[bytes] = ..., num_encoder_virtual: _Optional[int] = ..., cross_blocks: _Optional[_Iterable[int]] = ..., num_encoder_tokens: _Optional[int] = ..., adapter_place: _Optional[int] = ..., is_rope_long: bool = ...) -> None: ...
