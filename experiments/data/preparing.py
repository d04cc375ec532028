"""Preparing data sets with tensorflow-datasets: the one thing that needs TensorFlow."""

import contextlib
import importlib.util
import logging
import os
import sys
from collections.abc import Iterator
from typing import Any

from experiments.data.downloads import (
    check_downloadable,
    make_builder,
    needed_archives,
    preparing_lock,
)
from experiments.data.files import say
from experiments.data.prepared import Prepared, data_dir, find_prepared, import_tfds
from experiments.errors import UsageError


def prepare(name: str) -> Prepared:
    """The prepared data set; prepares it, downloads included, if it is not.

    Raises:
      UsageError: it is not there and cannot be prepared; the message says why and
        what to do.
    """
    prepared = find_prepared(name)
    if prepared is not None:
        return prepared
    missing = [a for a in needed_archives(name) if not a.is_there()]
    check_downloadable(missing)
    if not has_tensorflow():
        raise UsageError(
            f"{name}: preparing it, which is done once, needs TensorFlow: pip install"
            " 'spherical-optax[tensorflow]'"
        )
    try:
        with preparing_lock(name):
            prepared = find_prepared(name)  # by the process that had the lock
            if prepared is None:
                _prepare(name)
                prepared = find_prepared(name)
    except OSError as error:
        raise UsageError(f"{error.filename or data_dir()}: {error}") from error
    if prepared is None:
        raise UsageError(f"{data_dir() / name}: nothing there after preparing it")
    return prepared


def has_tensorflow() -> bool:
    """Whether TensorFlow is installed; it is not imported."""
    return importlib.util.find_spec("tensorflow") is not None


def _prepare(name: str) -> None:
    """Runs tensorflow-datasets; it takes a data set for complete or not at all."""
    say(f"preparing {name} in {data_dir()}, once")
    tfds = import_tfds()
    try:
        with _quiet(tfds):
            make_builder(name).download_and_prepare(
                download_dir=str(data_dir() / "downloads"),
                download_config=tfds.download.DownloadConfig(try_download_gcs=False),
            )
    except Exception as error:  # anything from a full disk to a changed address
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:500]
        raise UsageError(f"{name}: could not be prepared: {reason}") from error


@contextlib.contextmanager
def _quiet(tfds: Any) -> Iterator[None]:
    """Progress bars where someone watches; logs and GPU memory left alone."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import tensorflow as tf  # type: ignore

    with contextlib.suppress(RuntimeError):  # it has begun: too late to choose
        tf.config.set_visible_devices([], "GPU")
    log = logging.getLogger("absl")
    level = log.level
    if not sys.stderr.isatty():
        tfds.disable_progress_bar()
    log.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        log.setLevel(level)
