"""Lets mmengine read its own checkpoints and what it downloads, without letting them run code.

Since torch 2.6, `torch.load` rebuilds only objects of allowed types. mmengine's checkpoints hold
a few more: its HistoryBuffers (numpy arrays with their statistics) in the message hub, numpy
numbers among the metrics, and pieces of the config in the data set's meta information. What it
downloads, mmengine reads with all restrictions off.

Its functions find, download and wait as ever, but that downloads must have the hash in their name.
Only where they call torch.load, kat_mm's reader reads, which tries torch.load itself first.
"""

import os
from functools import wraps
from pathlib import Path
from types import ModuleType
from urllib.parse import urlparse

import torch
from mmengine.runner import checkpoint

from ...errors import DataError
from ...weights.reading import HUB, download, hash_in_name, read_checkpoint
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
    if HUB not in loader._schemes:
        loader.register_scheme(HUB, _read_hub)
    if loader._schemes.get('') is checkpoint.load_from_local:
        loader.register_scheme('', _name_missing(checkpoint.load_from_local), force=True)


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
        folder = Path(model_dir or os.path.join(torch.hub.get_dir(), 'checkpoints'))
        file = folder / os.path.basename(urlparse(url).path)
        if hash_in_name(url) and not file.exists():
            download(url, file, progress)
        try:
            return load_url(url, model_dir, map_location, progress, weights_only=True)
        except Exception:
            if not file.is_file():  # the download failed
                raise
            return _load(file, map_location)

    return load_url_safely


def _read_hub(filename, map_location=None) -> object:
    """Reads hf-hub:owner/name, also with @revision behind it."""
    return read_checkpoint(filename, None, map_location)


class MissingCheckpoint(DataError, FileNotFoundError):
    """There is no checkpoint of that name. mmengine's own error is a FileNotFoundError."""


def _name_missing(load_from_local):
    """Returns a loader of local files that tells what is wrong with the name of none."""

    @wraps(load_from_local)
    def load_from_local_or_tell(filename, map_location=None):
        if os.path.isfile(os.path.expanduser(filename)):
            return load_from_local(filename, map_location)
        try:
            return read_checkpoint(filename, None, map_location)
        except DataError as error:
            raise MissingCheckpoint(*error.args) from error

    return load_from_local_or_tell
