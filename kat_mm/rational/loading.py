"""Loads the compiled kernels that `setup.py` put beside the package."""

import os
import warnings
from pathlib import Path

import torch

from .schemas import MARK

MIN_TORCH = (2, 10)  # the stable ABI that the compiled libraries are built against
FOLDER = Path(__file__).resolve().parent.parent
NEEDS = {'cpu': 'a C++ compiler', 'cuda': "nvcc of torch's CUDA generation"}


def load_compiled() -> None:
    """Registers the compiled kernels; where any is missing, warns once what and how to get it."""
    version = tuple(int(part) for part in torch.__version__.split('.')[:2])
    if version < MIN_TORCH:
        warnings.warn(
            f'kat_mm: torch {torch.__version__} is older than 2.10, which the compiled rational '
            'op needs: the op runs in plain PyTorch, correct but slow',
            stacklevel=2,
        )
        return
    backends = ('cpu', 'cuda') if torch.version.cuda else ('cpu',)
    if missing := [reason for backend in backends if (reason := _load(backend))]:
        warnings.warn(
            f'kat_mm: {"; ".join(missing)}. Without them the op runs in plain PyTorch, correct but '
            "slow. To build them: 'pip install --no-build-isolation -e .' in a clone of kat_mm",
            stacklevel=2,
        )


def _load(backend: str) -> str | None:
    """Loads the library of a backend; returns why not, where it could be of use."""
    name = f'_C_{backend}'
    library = next(FOLDER.glob(f'{name}_{MARK}.*'), None)
    if library:
        try:
            torch.ops.load_library(os.fspath(library))
        except OSError as error:
            return f'{library.name} cannot be loaded ({error})'
        return None
    kernels = f'the {backend.upper()} kernels'
    failure = FOLDER / f'{name}.failed'
    if failure.exists():
        error = failure.read_text().strip()
        return f'{kernels} failed to compile ({error}; KAT_MM_BUILD=required shows all of it)'
    if others := sorted(path.name for path in FOLDER.glob(f'{name}*')):
        return f'{others[0]} was built for other Python files of kat_mm than these'
    if backend == 'cpu' or torch.cuda.is_available():
        return f'{kernels} are not built, which takes {NEEDS[backend]}'
    return None
