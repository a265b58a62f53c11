"""Running a TFDS builder once, in silence: what the scenes and the archives share.

This module imports TFDS; the package does not import this module.
"""

from __future__ import annotations

import contextlib
import io
import logging
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import tensorflow_datasets as tfds


def prepare(make_builder: Callable[[], Any], progress: bool) -> pathlib.Path:
    """Runs a builder unless its data set is already there.

    TFDS writes into a directory of its own and renames it when all is written, so an interrupted
    preparation is started again and never read.

    Args:
      make_builder: makes the builder, which has an attribute ``progress``.
      progress: show the builder's bar.

    Returns:
      The directory of the prepared data set.
    """
    with quiet():
        builder = make_builder()
        path = pathlib.Path(builder.data_dir)
        if not is_prepared(path):
            builder.progress = progress
            download_config = tfds.download.DownloadConfig(
                try_download_gcs=False, compute_stats=tfds.download.ComputeStatsMode.SKIP
            )
            try:
                builder.download_and_prepare(download_config=download_config)
            except OSError:
                # Another process that prepared the same was first to rename its directory; which
                # bits are there does not depend on who wrote them.
                if not is_prepared(path):
                    raise
    return path


def is_prepared(path: pathlib.Path) -> bool:
    """Whether a directory holds a prepared data set."""
    return (path / "dataset_info.json").exists()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps TFDS from announcing downloads, custom configs and two bars for what is one loop."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        tfds.enable_progress_bar()
        logger.setLevel(level)
