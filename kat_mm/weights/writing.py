"""Writes weights as files that `reading` and others read."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ..errors import ConfigError, DataError, one_line

SUFFIXES = ('.pth', '.safetensors')


def check_name(path: Path) -> None:
    """Checks that the name of a file to write tells its format.

    Raises:
        ConfigError: if not.
    """
    if path.suffix not in SUFFIXES:
        raise ConfigError(f'{path}: the name must end with {" or ".join(SUFFIXES)}')


def write_weights(weights: Mapping[str, Tensor], path: Path) -> None:
    """Writes a state dict to a file, and makes its folder.

    Args:
        weights: on any device; they are written as of the CPU.
        path: .safetensors, or .pth for `torch.load`, which has them under 'state_dict'.

    Raises:
        ConfigError: as `check_name`.
        DataError: where there can be no such file.
    """
    check_name(path)
    weights = {key: value.detach().cpu().contiguous() for key, value in weights.items()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == '.safetensors':
            from safetensors.torch import save_file

            save_file(_apart(weights), path)
        else:
            torch.save({'state_dict': weights}, path)
    except (OSError, RuntimeError) as error:
        raise DataError(f'{path} cannot be written ({one_line(error)})') from error


def _apart(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies what keys share, as blocks may share parameters; safetensors knows no sharing."""
    places, apart = set(), {}
    for key, value in weights.items():
        place = value.untyped_storage().data_ptr()
        apart[key] = value.clone() if place in places else value
        places.add(place)
    return apart
