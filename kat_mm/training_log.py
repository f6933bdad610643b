"""The course of a training run as numbers."""

import json
from collections.abc import Iterator
from pathlib import Path

from .errors import DataError


def read_scalars(work_dir: str | Path) -> tuple[list[dict], list[dict]]:
    """Returns what the runs of a work dir logged: (training records, validation records).

    Records are dicts as mmengine writes them to scalars.json, in the order of their steps. A run
    replaces what runs before it logged from its first step on.

    Raises:
        DataError: if nothing was logged there.
    """
    training, validation = {}, {}
    for path in sorted(Path(work_dir).glob('*/vis_data/scalars.json')):
        run = list(_parse(path))
        for records, is_training in ((training, True), (validation, False)):
            new = {r['step']: r for r in run if ('loss' in r) == is_training}
            for step in [step for step in records if new and step >= min(new)]:
                del records[step]
            records.update(new)
    if not training:
        raise DataError(f'{work_dir} has no training log (*/vis_data/scalars.json)')
    return [training[k] for k in sorted(training)], [validation[k] for k in sorted(validation)]


def _parse(path: Path) -> Iterator[dict]:
    for line in path.read_text().splitlines():
        try:
            yield json.loads(line)
        except ValueError:  # the line that a killed run was writing
            continue
