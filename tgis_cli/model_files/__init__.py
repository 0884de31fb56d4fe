"""Finding, downloading, converting and bundling model files. Serving needs only the part that finds them."""

from tgis_cli.model_files.cache.location import find_cache_dir, get_cache_dir, is_homeless
from tgis_cli.model_files.cache.model_dir import (
    DEMO,
    DEMO_MODEL_DIR,
    find_model,
    find_model_dir,
    is_in_cache,
    list_folders,
    suggest_demo,
)

__all__ = [
    "DEMO",
    "DEMO_MODEL_DIR",
    "find_cache_dir",
    "find_model",
    "find_model_dir",
    "get_cache_dir",
    "is_homeless",
    "is_in_cache",
    "list_folders",
    "suggest_demo",
]
