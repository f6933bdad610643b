"""What a conversion changed, and what it left."""

from collections.abc import Sequence
from dataclasses import dataclass

ALREADY = 'its activation is rational already'


@dataclass(frozen=True)
class ConvertedMLP:
    """An MLP that is a GR-KAN layer now.

    Attributes:
        name: its name in the model.
        kind: its class.
        channels: input, hidden and output channels.
        activation: the class of the activation that act2 took the place of.
        interval: the range (low, high) of x that act2 is fitted on.
        error: the largest |act2(x) - activation(x)| for x in the interval.
        rms: the root of the mean square of act2(x) - activation(x) over the samples, if any.
        ran: both activations were called, on the samples or on a small input of the MLP alone.
    """

    name: str
    kind: str
    channels: tuple[int, int, int]
    activation: str
    interval: tuple[float, float]
    error: float
    rms: float | None
    ran: bool = True


@dataclass(frozen=True)
class LeftMLP:
    """An MLP, or what looks like one, that stayed as it was, and why."""

    name: str
    kind: str
    reason: str


@dataclass(frozen=True)
class ConversionReport:
    """What `to_kat` converted and what it left; as a string, a table of both."""

    converted: Sequence[ConvertedMLP]
    left: Sequence[LeftMLP]

    def __str__(self) -> str:
        lines = []
        if self.converted:
            lines.append(f'Converted into GR-KAN layers: {len(self.converted)}')
            head = ('', '', 'channels', 'activation', 'fitted on', 'largest error', 'rms error')
            rows = [head, *map(_row, self.converted)]
            if all(mlp.rms is None for mlp in self.converted):
                rows = [row[:-1] for row in rows]
            lines += _table(rows)
        elif self.left and all(mlp.reason == ALREADY for mlp in self.left):
            lines.append('Nothing left to convert: the activations of all MLPs are rational.')
        else:
            lines.append('Converted into GR-KAN layers: none')
        if idle := [mlp.name for mlp in self.converted if not mlp.ran]:
            lines.append(
                'Not run, so that nothing shows whether both activations are called: '
                f'{", ".join(idle)}'
            )
        if self.left:
            lines.append(f'Left as they were: {len(self.left)}')
            lines += _table([(mlp.name, mlp.kind, mlp.reason) for mlp in self.left])
        return '\n'.join(lines)


def _row(mlp: ConvertedMLP) -> tuple[str, ...]:
    channels = '-'.join(map(str, mlp.channels))
    interval = '[{:.3g}, {:.3g}]'.format(*mlp.interval)
    rms = '' if mlp.rms is None else f'{mlp.rms:.1e}'
    return mlp.name, mlp.kind, channels, mlp.activation, interval, f'{mlp.error:.1e}', rms


def _table(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ['  ' + '  '.join(map(str.ljust, row, widths)).rstrip() for row in rows]
