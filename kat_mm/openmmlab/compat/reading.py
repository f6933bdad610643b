"""Lets mmengine read its own checkpoints and what it downloads, without letting them run code.

Since torch 2.6, `torch.load` rebuilds only objects of allowed types. mmengine's checkpoints hold
a few more: its HistoryBuffers (numpy arrays with their statistics) in the message hub, numpy
numbers among the metrics, and pieces of the config in the data set's meta information. What it
downloads, mmengine reads with all restrictions off.

Its functions find, download and wait as ever. Only where they call torch.load, kat_mm's reader
reads, which tries torch.load itself first.
"""

import os
from functools import wraps
from types import ModuleType
from urllib.parse import urlparse

import torch
from mmengine.runner import checkpoint

from ...errors import DataError
from ...weights.reading import read_checkpoint
from ...weights.unpickling import ALLOWED
from ...weights.unpickling import load as load_allowed
from .checkpoint_types import SAFE_GLOBALS
from .once import replace


def read_safely() -> None:
    """Makes kat_mm's reader the one of mmengine's checkpoint loaders."""
    ALLOWED.update(SAFE_GLOBALS)
    replace(checkpoint, 'torch', lambda _: _Torch('torch'))
    replace(checkpoint, 'load_url', _read_downloads)
    if hasattr(checkpoint, '_safe_torch_load'):
        # The maintained fork, onedl-mmengine, reads with code and all what it cannot read safely.
        replace(checkpoint, '_safe_torch_load', lambda _: _load)
    loader = checkpoint.CheckpointLoader
    if loader._schemes.get('') is checkpoint.load_from_local:
        loader.register_scheme('', _find_elsewhere(checkpoint.load_from_local), force=True)


def _load(file, map_location=None, weights_only: bool | None = None) -> object:
    """Reads a checkpoint as mmengine calls torch.load, always safely.

    Raises:
        DataError: names the file, and says what is wrong with it.
    """
    if isinstance(file, str | os.PathLike):
        return read_checkpoint(file, None, map_location)
    return load_allowed(file, map_location)


class _Torch(ModuleType):
    """The module `torch` as mmengine's loaders see it: all but `load` is torch's own."""

    load = staticmethod(_load)

    def __getattr__(self, name: str):
        return getattr(torch, name)


def _read_downloads(load_url):
    """Returns `torch.hub.load_state_dict_from_url`, of which only the reading is kat_mm's."""

    @wraps(load_url)
    def load_url_safely(url, model_dir=None, map_location=None, progress=True):
        try:
            return load_url(url, model_dir, map_location, progress, weights_only=True)
        except Exception:
            folder = model_dir or os.path.join(torch.hub.get_dir(), 'checkpoints')
            file = os.path.join(folder, os.path.basename(urlparse(url).path))
            if not os.path.isfile(file):  # the download failed
                raise
            return _load(file, map_location)

    return load_url_safely


class MissingCheckpoint(DataError, FileNotFoundError):
    """There is no checkpoint of that name. mmengine's own error is a FileNotFoundError."""


def _find_elsewhere(load_from_local):
    """Returns a loader of local files that takes other names for repositories of Hugging Face."""

    @wraps(load_from_local)
    def load_from_local_or_hub(filename, map_location=None):
        if os.path.isfile(os.path.expanduser(filename)):
            return load_from_local(filename, map_location)
        try:
            return read_checkpoint(filename, None, map_location)
        except DataError as error:
            raise MissingCheckpoint(*error.args) from error

    return load_from_local_or_hub
