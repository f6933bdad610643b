"""Stand-ins for CUDA graphs, which run on a CPU."""

from torch import nn

from kat_mm.graphs import Graphed


class Recorded:
    """A stand-in for a graph, which runs the function and remembers that it did."""

    def __init__(self, function, owner, args, pool, grads):
        self.function, self.pending, self.runs = function, False, 0

    def is_pending(self):
        return self.pending

    def __call__(self, *args):
        self.runs += 1
        return self.function(*args)


class Frozen(Recorded):
    """A stand-in that is captured with the weights of that time, whatever comes later."""

    def __init__(self, function, owner, args, pool, grads):
        super().__init__(function, owner, args, pool, grads)
        self.result = function(*args)

    def __call__(self, *args):
        self.runs += 1
        return self.result


def graphed(owner=None, **kwargs):
    owner = owner or nn.Linear(3, 2)
    return Graphed(owner.forward, owner, 'linear', **{'capture': Recorded, 'warmup': 2, **kwargs})


def runs(function):
    return [capture.runs for capture in function.captures.values()]
