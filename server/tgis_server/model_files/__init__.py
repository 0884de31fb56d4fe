"""Decides which files of a model are its weights, and reads JSON files and the headers of weight files.

Independent of torch and of engines; used by every command and by the shards.
"""

from tgis_server.model_files.dtypes import HEADER_DTYPES, ITEM_BYTES, TENSOR_DTYPES
from tgis_server.model_files.headers import (
    MAX_HEADER_BYTES,
    TensorInfo,
    read_header,
    read_headers,
)
from tgis_server.model_files.json_file import parse_json, read_json
from tgis_server.model_files.length import LENGTH_KEYS, MAX_INTEGER, Length, find_length
from tgis_server.model_files.stand_ins import read_beginning, refuse_stand_in
from tgis_server.model_files.tensors import (
    HEAD,
    Find,
    Tell,
    find_tensor,
    have_same_content,
    is_blank,
    read_tensors,
    spellings,
)
from tgis_server.model_files.weight_files import (
    BIN,
    PT,
    SAFETENSORS,
    WeightFiles,
    WeightFormat,
    choose_pytorch,
    choose_weights,
    converted_name,
    find_weights,
    is_of_training,
    parse_weight_map,
    read_weight_map,
)

__all__ = [
    "BIN",
    "HEAD",
    "HEADER_DTYPES",
    "ITEM_BYTES",
    "LENGTH_KEYS",
    "MAX_HEADER_BYTES",
    "MAX_INTEGER",
    "PT",
    "SAFETENSORS",
    "TENSOR_DTYPES",
    "Find",
    "Length",
    "Tell",
    "TensorInfo",
    "WeightFiles",
    "WeightFormat",
    "choose_pytorch",
    "choose_weights",
    "converted_name",
    "find_length",
    "find_tensor",
    "find_weights",
    "have_same_content",
    "is_blank",
    "is_of_training",
    "parse_json",
    "parse_weight_map",
    "read_beginning",
    "read_header",
    "read_headers",
    "read_json",
    "read_tensors",
    "read_weight_map",
    "refuse_stand_in",
    "spellings",
]
