"""What a training has logged, as figures."""

import math
import re
import statistics
from pathlib import Path

from ...errors import DataError
from ...training_log import read_scalars
from .study import SCORES, Task

LOG = 'output.txt'  # in the folder of a run: all that its processes have printed
# Of tools/train.py's last line where a run has diverged.
DIVERGED = re.compile(r'^error: .*(is not finite|NaN or infinite)', re.MULTILINE)
TAIL = 2**16  # bytes


def figures(folder: Path, task: Task) -> dict[str, float] | None:
    """Returns the scores of a training and how it went; None if its last validation is missing.

    The scores are by name, in [0, 1]. `loss` is the mean of the last tenth of the log's lines,
    `step_ms` the median time of an iteration with its loading, and `peak_mib` the most memory, as
    the log has it.
    """
    try:
        training, validation = read_scalars(folder)
    except DataError:
        return None
    keys = {name: SCORES[name] for name in task.scores}
    scored = [r for r in validation if all(key in r for key, _ in keys.values())]
    last = training[-1]
    if not scored or scored[-1]['step'] < last.get('epoch', last['step']):
        return None
    end = training[-math.ceil(len(training) / 10) :]
    found = {name: scored[-1][key] * factor for name, (key, factor) in keys.items()}
    found['loss'] = statistics.fmean(r['loss'] for r in end)
    if times := [r['time'] for r in training if 'time' in r]:
        found['step_ms'] = 1e3 * statistics.median(times)
    if memory := [r['memory'] for r in training if 'memory' in r]:
        found['peak_mib'] = max(memory)
    return found


def last_lines(folder: Path, count: int = 12) -> list[str]:
    """Returns the last lines that a training has printed."""
    return [line for line in _tail(folder).splitlines() if line.strip()][-count:]


def has_diverged(folder: Path) -> bool:
    """Tells whether the last process of a run ended because its loss or weights were no numbers."""
    return bool(DIVERGED.search('\n'.join(last_lines(folder, 3))))


def attempts(folder: Path) -> int:
    """Returns how many processes have trained a run so far."""
    return len([*folder.glob('*/vis_data')])


def _tail(folder: Path) -> str:
    path = folder / LOG
    if not path.is_file():
        return ''
    with path.open('rb') as file:
        file.seek(max(path.stat().st_size - TAIL, 0))
        return file.read().decode(errors='replace')
