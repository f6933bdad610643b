"""The analyses of a trained model: each writes pictures to a folder and returns its numbers."""

import re
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from ...analysis import landscape, parameters, spectra, units
from ...errors import ConfigError
from . import images, models
from .losses import BatchLosses, training_batches
from .subject import Subject

LIMIT = 4.0  # of the scores, where none were seen
DRAWN = 8.0  # limit of the scores that functions are drawn for
ROOM = 4  # blocks, and heads of each, in a picture of functions


def attention(subject: Subject) -> dict:
    """Draws what some tokens of an image attend to, in a picture for each block."""
    from ...analysis.plot_attention import plot_attention

    image = subject.first_image
    height, width = image.picture.shape[:2]
    blocks = subject.chosen(len(image.seen), subject.blocks, '--blocks', 'blocks with attention')
    numbers = {'image': image.name, 'blocks': {}}
    with subject.progress('attention maps', len(blocks)) as advance:
        for block in blocks:
            seen = image.seen[block]
            size = image.token_size(seen.grid)
            tokens = [(int(y * height) // size, int(x * width) // size) for y, x in subject.queries]
            heads = subject.chosen(seen.attention.num_heads, subject.heads, '--heads', 'heads')
            rows = seen.rows(tokens)[:, heads].cpu()
            kind = 'global' if seen.windows is None else f'windows of {seen.windows.key[2]}'
            title = f'Attention of block {block}: {seen.label}, {kind}'
            png = subject.out / f'attention_block{block}.png'
            plot_attention(png, title, image.picture, size, tokens, rows, heads)
            count = rows.isfinite().sum((2, 3), keepdim=True)
            flat = (rows * count).nan_to_num().flatten(2)
            numbers['blocks'][block] = {
                'name': seen.name,
                'tokens': tokens,
                'heads': heads,
                'most_times_N': flat.amax(2).tolist(),
                'least_times_N': flat.amin(2).tolist(),
            }
            advance()
    return numbers


def singular_values(subject: Subject) -> dict:
    """Decomposes the matrices of all blocks over some images."""
    from ...analysis.plot_spectra import plot_effective_ranks, plot_singular_values

    count = len(subject.first_image.seen)
    blocks = [spectra.BlockSpectra() for _ in range(count)]
    kinds = len(spectra.MATRICES)
    with subject.progress('singular values', len(subject.samples) * count * kinds) as advance:
        for i, sample in enumerate(subject.samples):
            image = subject.first_image if i == 0 else images.look_at(subject.model, sample)
            for block, seen in zip(blocks, image.seen, strict=True):
                block.add(seen, advance)
    summaries = [block.summary() for block in blocks]
    for block, summary in zip(blocks, summaries, strict=True):
        name, within = summary['name'], subject.scores_within
        within[name] = max(block.scores_within(), within.get(name, 0.0))
    kind = ' and '.join(dict.fromkeys(s['attention'] for s in summaries))
    many = f'{len(subject.samples)} images' if len(subject.samples) > 1 else 'one image'
    plot_effective_ranks(
        subject.out / 'effective_rank.png', summaries, f'Effective rank of {kind}, {many}'
    )
    plot_singular_values(
        subject.out / 'singular_values.png',
        [block.curves() for block in blocks],
        [
            f'block {i}' + (f', windows of {s["window"][0]}' if s['window'] else '')
            for i, s in enumerate(summaries)
        ],
        f'Singular values of {kind}: median and middle 80% over heads and {many}',
    )
    definition = 'exp(entropy of s / sum(s)), Roy and Vetterli, EUSIPCO 2007'
    return {'images': len(subject.samples), 'definition': definition, 'blocks': summaries}


def learned_units(subject: Subject) -> dict:
    """Draws the functions of KArAt that changed most and middling, against their start."""
    from ...analysis.plot_units import plot_units

    layers = dict(units.unit_layers(subject.model))
    if not layers:
        raise ConfigError(f'{type(subject.model).__name__} has no learnable functions of KArAt')
    groups = [[f'{name}.{k}' for k, _ in m.named_parameters()] for name, m in layers.items()]
    known = subject.known_start(groups)
    if not all(key in known for group in groups for key in group):
        subject.notes['units'] = subject.no_start('the functions')
        known = {}
    blocks = {name: int((re.findall(r'blocks\.(\d+)\.', name) or [0])[0]) for name in layers}
    shown = subject.blocks or _spread(sorted(set(blocks.values())))
    panels, numbers = [], {}
    with subject.progress('units', len(layers)) as advance:
        for name, layer in layers.items():
            begun = units.layer_with(layer, name, known) if known else None
            within = _scores_within(subject, layer)
            change = units.unit_change(layer, begun, within or LIMIT)
            numbers[name] = {'limit': within or LIMIT, **change.summary()}
            if blocks[name] in shown:
                label = f'block {blocks[name]}' + (', 2nd' if name.endswith('units2') else '')
                panels.append(_panels(subject, label, layer, begun, change, within))
            advance()
    if not panels:
        raise ConfigError(
            f'--blocks {list(shown)}: functions of KArAt are in {sorted(set(blocks.values()))}'
        )
    title = 'Learned functions of the scores' + (' and their start' if known else '')
    plot_units(subject.out / 'units.png', _drawn_scores(), panels, title)
    return {'has_start': bool(known), 'layers': numbers}


def _panels(
    subject: Subject,
    label: str,
    layer: units.UnitLayer,
    begun: units.UnitLayer | None,
    change: units.UnitChange,
    within: float | None,
) -> list:
    """Returns the functions to draw of a layer, for some of its heads."""
    from ...analysis.plot_units import Curves

    x, count = _drawn_scores(), len(change.size)
    heads = subject.chosen(count, subject.heads, '--heads', 'heads')
    labels = ('largest', 'median size') if begun is None else ('changed most', 'median change')
    result = []
    for head in heads if subject.heads else _spread(heads):
        order = change.by_change(head)
        picked = order[[0, len(order) // 2]]
        curves = [
            None if one is None else units.evaluate_units(one, x, head, picked).cpu()
            for one in (layer, begun)
        ]
        result.append(Curves(f'{label}, head {head}', labels, *curves, within))
    return result


def _drawn_scores() -> Tensor:
    return torch.linspace(-DRAWN, DRAWN, units.POINTS, dtype=torch.float64)


def _spread(numbers: list[int]) -> list[int]:
    """Returns at most as many numbers as a picture has room for, from the first to the last."""
    if len(numbers) <= ROOM:
        return numbers
    return [numbers[round(i * (len(numbers) - 1) / (ROOM - 1))] for i in range(ROOM)]


def _scores_within(subject: Subject, layer: units.UnitLayer) -> float | None:
    """Returns how large the scores are that a layer takes; None if none were seen.

    Those of all blocks that share the layer count. Other layers than the first take no scores, and
    neither do those of Phi(W s).
    """
    seen = []
    for name, within in subject.scores_within.items():
        operator = getattr(subject.model.get_submodule(name), 'operator', None)
        if getattr(operator, 'units', None) is layer and operator.form != 'phi_w':
            seen.append(within)
    return max(seen, default=None)


def histograms(subject: Subject) -> dict:
    """Draws histograms of all parameters by kind."""
    from ...analysis.plot_parameters import Kind, plot_histograms

    kinds = parameters.kinds(subject.model)
    known = subject.known_start(list(kinds.values()))
    unknown = [kind for kind, names in kinds.items() if any(name not in known for name in names)]
    if unknown:
        which = 'the parameters' if len(unknown) == len(kinds) else ', '.join(unknown)
        subject.notes['histograms'] = subject.no_start(which)
    drawn, numbers = [], {}
    for kind, values, before, described in parameters.by_kind(
        subject.model, subject.weights, known
    ):
        drawn.append(Kind(kind, values, before))
        numbers[kind] = described
    plot_histograms(subject.out / 'histograms.png', drawn, 'Parameters by kind')
    return {'kinds': numbers}


def loss_landscape(subject: Subject) -> dict:
    """Computes the loss around the path of training, on the plane that holds most of it."""
    from ...analysis.plot_landscape import plot_landscape

    model, points = subject.model, subject.points
    files = list(subject.run)
    models.check_spans_plane(files)
    states = models.load_states(model, files)
    names = [name for name, _ in model.named_parameters()]
    begun = subject.known_start(list(parameters.kinds(model).values()))
    is_other = subject.start is None or Path(subject.start) not in [path for _, path in files]
    if files[0].iteration > 0 and is_other and all(name in begun for name in names):
        files.insert(0, models.Saved(0, Path('start')))
        states.insert(0, begun)
    plane = landscape.principal_plane(states, names, subject.device)
    loss = BatchLosses(model, training_batches(subject.config, subject.batches))
    final = {'loss': loss(), 'loss_with_own_statistics': loss.with_own_statistics()}
    axes = plane.axes(points)
    along, projected = [], []
    with subject.progress('loss landscape', points**2 + 2 * len(files)) as advance:
        for state, (a, b) in zip(states, plane.path.tolist(), strict=True):
            landscape.set_parameters(model, state)
            along.append(loss())
            advance()
            landscape.set_parameters(model, plane.point(a, b))
            projected.append(loss())
            advance()
        losses = landscape.grid_losses(model, plane, axes, loss, advance)
    plot_landscape(
        subject.out / 'landscape.png',
        axes,
        losses,
        plane.path,
        [step for step, _ in files],
        plane.variance,
        'Loss around the path of training',
    )
    return {
        'batches': len(loss.batches),
        'mode': 'evaluation; batch norms with statistics of these batches at each point',
        'batch_norms': len(landscape.batch_norms(model)),
        'final': final,
        'variance': plane.variance,
        'axes': [axis.tolist() for axis in axes],
        'losses': losses.tolist(),
        'path': [
            {
                'iteration': step,
                'checkpoint': path.name,
                'place': place,
                'distance_to_plane': distance,
                'loss': one,
                'loss_of_projection': other,
            }
            for (step, path), place, distance, one, other in zip(
                files,
                plane.path.tolist(),
                plane.distances.tolist(),
                along,
                projected,
                strict=True,
            )
        ],
    }


ANALYSES: dict[str, Callable[[Subject], dict]] = {
    'attention': attention,
    'spectra': singular_values,
    'units': learned_units,
    'histograms': histograms,
    'landscape': loss_landscape,
}
DATA = {'attention': 'test', 'spectra': 'test', 'landscape': 'train'}  # split that each reads
