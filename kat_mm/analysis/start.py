"""Whether weights that were drawn again are those that a training run started from."""

from collections.abc import Iterable, Mapping, Sequence

from torch import Tensor

LEAST = 1000  # entries for a verdict
DEVIATIONS = 8.0  # of the correlation of independent draws: by chance once in 10^15


def correlation(one: Tensor, other: Tensor) -> float | None:
    """Computes the correlation of the entries of two tensors; None where one of them is constant.

    Constant up to rounding, that is, as parameters are that no start draws.
    """
    x, y = (t.detach().double().flatten().cpu() for t in (one, other))
    x, y = x - x.mean(), y - y.mean()
    sizes = x.norm(), y.norm()
    floors = (1e-6 * t.detach().double().norm().item() for t in (one, other))
    if any(size <= floor for size, floor in zip(sizes, floors, strict=True)):
        return None
    return (x @ y / (sizes[0] * sizes[1])).item()


def is_the_start(start: Tensor, trained: Tensor) -> bool | None:
    """Tells whether a trained parameter descends from a start, by what they have in common.

    Draws from another seed, or of the same seed in another order, are independent: the correlation
    of n entries is then within a few times n^(-1/2) of zero. The less training, the surer.

    Returns:
        None for what tells nothing: few entries, or a start that is not drawn.
    """
    if start.shape != trained.shape:
        return False
    if start.numel() < LEAST or not start.is_floating_point():
        return None
    value = correlation(start, trained)
    return None if value is None else value > DEVIATIONS * start.numel() ** -0.5


def known_start(
    start: Mapping[str, Tensor],
    trained: Mapping[str, Tensor],
    groups: Iterable[Sequence[str]],
) -> dict[str, Tensor]:
    """Returns those of drawn parameters from which trained ones descend.

    A group is known if all of its parameters that tell are starts; one that tells nothing, such as
    that of norms, is known if any other is.

    Args:
        start: drawn weights of a model.
        trained: its weights after training.
        groups: names of parameters that are known together.
    """
    sure, silent = [], []
    for names in groups:
        verdicts = {is_the_start(start[name], trained[name]) for name in names}
        if False not in verdicts:
            (sure if True in verdicts else silent).extend(names)
    return {name: start[name] for name in sure + silent} if sure else {}
