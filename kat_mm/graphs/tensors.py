"""The parameters and buffers that a module has at a time, and whether they are still the same."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from operator import is_not

from torch import Tensor, nn

from .capture import CaptureError


class ModuleTensors:
    """The modules inside of a module, itself included, with their parameters and buffers.

    Args:
        owner: the module.

    Attributes:
        modules: the modules.
        tensors: what they have, in order; what several of them have, several times.
    """

    def __init__(self, owner: nn.Module):
        self._owner = owner
        self._places: list[int] = []
        self._list()

    def _list(self) -> None:
        self.modules = list(self._owner.modules())
        own = [d for m in self.modules for d in (m._parameters, m._buffers)]
        self.tensors: list[Tensor] = [x for x in _values(own) if x is not None]
        dicts = own + [module._modules for module in self.modules]
        self._full = [d for d in dicts if d]
        self._empty = [d for d in dicts if not d]  # most, and any(...) looks at them in no time
        # What was replaced is held until it is noticed, so that nothing new is mistaken for it.
        self._values = _values(self._full)

    def have_changed(self) -> bool:
        """Tells whether any is another one, or elsewhere in memory, than at the last call."""
        now, before = _values(self._full), self._values
        is_same = len(now) == len(before) and not any(map(is_not, now, before))
        is_same = is_same and not any(self._empty)
        if not is_same:
            self._list()
        places = [x.data_ptr() for x in self.tensors]
        have_moved, self._places = places != self._places, places
        return have_moved or not is_same

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Gives the modules the buffers back that a capture replaces: it has computed no others.

        Raises:
            CaptureError: where one was replaced.
        """
        buffers = [(module, dict(module._buffers)) for module in self.modules]
        replaced = []
        try:
            yield
        finally:
            for module, before in buffers:
                now = module._buffers
                names = [n for n in {**before, **now} if before.get(n) is not now.get(n)]
                if names:
                    now.clear()
                    now.update(before)
                    replaced.append(f'{type(module).__name__} replaces its buffer {names[0]}')
        if replaced:
            raise CaptureError(f'{replaced[0]}; write to it in place, such as by copy_')


def _values(dicts: Iterable[dict]) -> list:
    return [*chain.from_iterable(map(dict.values, dicts))]
