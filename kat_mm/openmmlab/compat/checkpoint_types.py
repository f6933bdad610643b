"""What an mmengine checkpoint may hold beyond tensors and Python's plain types.

It would not be safe to allow numpy's own classes and `builtins.getattr`, which these checkpoints
name. A pickle may give a numpy dtype any internal state, after which numpy takes bytes of the file
for pointers to objects; it may fill an array twice, under a tensor that shares its memory; and
getattr reaches everything. So the names are bound to the stand-ins below, which do what mmengine
needs and refuse the rest with an UnpicklingError.
"""

from pickle import UnpicklingError

import numpy as np
from mmengine.config import ConfigDict
from mmengine.logging import HistoryBuffer

_NUMBERS = ('b1', 'i1', 'i2', 'i4', 'i8', 'u1', 'u2', 'u4', 'u8', 'f2', 'f4', 'f8', 'c8', 'c16')


class _Dtype:
    """Stands for `numpy.dtype`: a number of fixed size, in either byte order."""

    def __init__(self, name: str, align: bool = False, copy: bool = False):
        if name not in _NUMBERS:
            raise UnpicklingError(
                f'a numpy dtype {name!r} in a checkpoint is refused: only '
                f'{", ".join(_NUMBERS)} are read. Store such a value as a tensor, a list or a '
                'string instead.'
            )
        self.numpy = np.dtype(name)

    def __setstate__(self, state: tuple):
        # The byte order is all that the state of such a dtype can tell. '|' means that it has none.
        if state[1] != '|':
            self.numpy = self.numpy.newbyteorder(state[1])


class _Array(np.ndarray):
    """An array of numbers that a checkpoint holds outside a HistoryBuffer.

    Only a subclass can watch over what a pickle fills it with. It is pickled as a plain array.
    """

    def __setstate__(self, state: tuple):
        if self.__dict__.pop('unfilled', None) is None:
            raise UnpicklingError('a checkpoint fills a numpy array twice, which is refused.')
        version, shape, dtype, fortran_order, data = state
        if not isinstance(dtype, _Dtype):
            raise UnpicklingError(f'a numpy array in a checkpoint has a dtype of {type(dtype)}.')
        super().__setstate__((version, shape, dtype.numpy, fortran_order, data))

    def __reduce__(self):
        return np.asarray(self).__reduce__()


def _new_array(*args) -> _Array:
    """An array that the pickle may fill, once."""
    array = _Array(0, np.int8)
    array.unfilled = True
    return array


def _new_scalar(dtype: _Dtype, data: bytes) -> np.generic:
    """The numpy number that `data` holds."""
    if not isinstance(dtype, _Dtype):
        raise UnpicklingError(f'a numpy number in a checkpoint has a dtype of {type(dtype)}.')
    return np.frombuffer(data, dtype.numpy, count=1)[0]


def _empty_bytes() -> bytes:
    """The content of an empty array, as pickles write it; any other content comes encoded."""
    return b''


def _only_named(path: str):
    """Stands for a class that pickles name as an argument, and never construct themselves."""

    def refuse(*args):
        raise UnpicklingError(f'a checkpoint calls {path} directly, which is refused.')

    return refuse


_ndarray = _only_named('numpy.ndarray')
_one_cycle = _only_named('mmengine.optim.scheduler.param_scheduler.OneCycleParamScheduler')


class _HistoryBuffer(HistoryBuffer):
    """Becomes a HistoryBuffer, with plain arrays, as soon as the pickle has filled it."""

    def __setstate__(self, state: dict):
        self.__class__ = HistoryBuffer
        # The statistics are functions of mmengine: they come from there, not from the file.
        self.__setstate__(
            {
                'max_length': state['max_length'],
                '_log_history': np.array(state['_log_history']),
                '_count_history': np.array(state['_count_history']),
            }
        )


def _getattr(owner, name: str):
    """Stands for `getattr`, by which pickles name functions that belong to a class."""
    if owner is _HistoryBuffer and name in ('min', 'max', 'mean', 'current'):
        return None  # not used: see _HistoryBuffer
    if owner is _one_cycle and name in ('_annealing_cos', '_annealing_linear'):
        from mmengine.optim.scheduler.param_scheduler import OneCycleParamScheduler

        return getattr(OneCycleParamScheduler, name)
    raise UnpicklingError(
        f'a checkpoint asks for getattr({owner!r}, {name!r}), which is refused: only functions of '
        'mmengine that its own checkpoints hold are looked up in this way.'
    )


SAFE_GLOBALS = {
    f'{ConfigDict.__module__}.ConfigDict': ConfigDict,
    'mmengine.logging.history_buffer.HistoryBuffer': _HistoryBuffer,
    'mmengine.optim.scheduler.param_scheduler.OneCycleParamScheduler': _one_cycle,
    'builtins.getattr': _getattr,
    'builtins.bytes': _empty_bytes,
    'numpy.dtype': _Dtype,
    'numpy.ndarray': _ndarray,
    'numpy.core.multiarray._reconstruct': _new_array,  # numpy 1
    'numpy._core.multiarray._reconstruct': _new_array,  # numpy 2
    'numpy.core.multiarray.scalar': _new_scalar,
    'numpy._core.multiarray.scalar': _new_scalar,
    # Objects of this class may be filled. A pickle names a class as module.name, so under a name
    # without a dot it cannot construct one itself.
    '_Array': _Array,
}
