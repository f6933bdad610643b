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
        init: the name in `kat_mm.rational.coefficients.FITS` of the function that act2 starts as.
        error_3: the largest |act2(x) - activation(x)| for x in [-3, 3].
        error_6: the same in [-6, 6].
    """

    name: str
    kind: str
    channels: tuple[int, int, int]
    activation: str
    init: str
    error_3: float
    error_6: float


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
            head = ('', '', 'channels', 'activation', 'error on [-3, 3]', 'on [-6, 6]')
            lines += _table([head, *map(_row, self.converted)])
        elif self.left and all(mlp.reason == ALREADY for mlp in self.left):
            lines.append('Nothing left to convert: the activations of all MLPs are rational.')
        else:
            lines.append('Converted into GR-KAN layers: none')
        if self.left:
            lines.append(f'Left as they were: {len(self.left)}')
            lines += _table([(mlp.name, mlp.kind, mlp.reason) for mlp in self.left])
        return '\n'.join(lines)


def _row(mlp: ConvertedMLP) -> tuple[str, ...]:
    channels = '-'.join(map(str, mlp.channels))
    errors = f'{mlp.error_3:.1e}', f'{mlp.error_6:.1e}'
    return mlp.name, mlp.kind, channels, mlp.activation, *errors


def _table(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ['  ' + '  '.join(map(str.ljust, row, widths)).rstrip() for row in rows]
