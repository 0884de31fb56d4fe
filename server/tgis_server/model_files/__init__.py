"""Which files of a model are what, and reading the small ones. No torch; used by every command and by the shards."""

from tgis_server.model_files.content import read_beginning, refuse_stand_in
from tgis_server.model_files.json_file import parse_json, read_json
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
    "PT",
    "SAFETENSORS",
    "WeightFiles",
    "WeightFormat",
    "choose_pytorch",
    "choose_weights",
    "converted_name",
    "find_weights",
    "is_of_training",
    "parse_json",
    "parse_weight_map",
    "read_beginning",
    "read_json",
    "read_weight_map",
    "refuse_stand_in",
]
