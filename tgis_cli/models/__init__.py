"""Finding model files. Nothing here downloads."""

from tgis_cli.models.hub_cache import find_cache_dir, find_model_dir
from tgis_cli.models.model_config import read_model_config

__all__ = ["find_cache_dir", "find_model_dir", "read_model_config"]
