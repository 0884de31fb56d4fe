"""Models as plain files with checksums, for sites without a network: a directory, or one tar file or stream.

::

    bundle.json        format, model, commit, revisions, and each file's name, size and digest; first in a tar
    config.json ...    the files, without links, so that the directory can be served as it is
    SHA256SUMS         for `sha256sum --check`; last in a tar, as it is known only when all files have been read
"""

from tgis_cli.model_files.bundle.manifest import make_manifest
from tgis_cli.model_files.bundle.pack import make_bundle
from tgis_cli.model_files.bundle.unpack import open_bundle, unbundle_to_cache, unbundle_to_directory

__all__ = ["make_bundle", "make_manifest", "open_bundle", "unbundle_to_cache", "unbundle_to_directory"]
