"""Figures of ways to compute an activation, side by side, and their table."""

from collections.abc import Callable

from rich.table import Table

from ..errors import ConfigError, UserError, one_line
from .providers import Inputs, Provider, backward_call, forward_call, memory
from .timing import spread, time_in_turns

BATCH_MS = 2.0


def measure(
    providers: dict[str, Provider], inputs: Inputs, rounds: int, advance: Callable[[], object]
) -> dict[str, dict[str, dict]]:
    """Returns the figures of a case: unit, median and quartiles by pass and provider."""
    device = inputs.activations[0].device
    figures = {}
    for name, call_of in (('forward', forward_call), ('backward', backward_call)):
        calls = {k: attempt(k, call_of, p, inputs) for k, p in providers.items()}
        times = time_in_turns(calls, rounds, device, batch_ms=BATCH_MS, on_round=advance)
        figures[name] = {k: dict(unit='ms', **vars(spread(v))) for k, v in times.items()}
        del calls  # and the results that they keep
    for name, provider in providers.items():
        if provider.differentiable:
            for kind, number in attempt(name, memory, provider, inputs).items():
                figures.setdefault(kind, {})[name] = dict(unit='MiB', median=number / 2**20)
    return figures


def attempt(name: str, function, *arguments):
    """Calls the function; where the provider of that name fails, the error says which it is."""
    try:
        return function(*arguments)
    except UserError:
        raise
    except Exception as error:  # other people's functions fail in any way
        x = arguments[-1].activations[0]
        kind = f'{"x".join(map(str, x.shape))} {str(x.dtype).removeprefix("torch.")}'
        raise ConfigError(
            f'provider {name} fails for {kind} ({one_line(error)}); leave it out, with --only the '
            'others, or choose other --shapes or --dtypes'
        ) from error


def add_ratios(figures: dict[str, dict[str, dict]]) -> None:
    """Puts the ratios to GELU and to the floor into the figures of a case."""
    for by_provider in figures.values():
        for column, base in (('to_gelu', 'gelu'), ('to_floor', 'copy')):
            medians = [v['median'] for k, v in by_provider.items() if k.partition('+')[0] == base]
            for figure in by_provider.values():
                if medians and medians[0]:
                    figure[column] = figure['median'] / medians[0]


def table(title: str, figures: dict[str, dict[str, dict]]) -> Table:
    """Returns the table of a case: a row for each provider."""
    result = Table(title=title, title_justify='left')
    result.add_column('provider')
    for part, by_provider in figures.items():
        unit = next(iter(by_provider.values()))['unit']
        for column in (f'{part} {unit}', '/ gelu', *(['/ floor'] if unit == 'ms' else [])):
            result.add_column(column, justify='right')
    for name in figures['forward']:
        cells = [name]
        for by_provider in figures.values():
            figure = by_provider.get(name, {})
            is_time = next(iter(by_provider.values()))['unit'] == 'ms'
            for key in ('median', 'to_gelu', *(['to_floor'] if is_time else [])):
                digits = '.4g' if key == 'median' else '.2f'
                cells.append(format(figure[key], digits) if key in figure else '')
        result.add_row(*cells)
    return result
