import re
from pathlib import Path

import pytest
import torch
from small_runner import small_runner

pytestmark = pytest.mark.skipif(
    torch.cuda.is_available(), reason='with a GPU, mmengine reports its memory'
)
STATUS = Path('/proc/self/status')


@pytest.fixture
def runner(tmp_path):
    runner = small_runner(tmp_path, length=1)
    runner.train()
    return runner


@pytest.mark.skipif(not STATUS.is_file(), reason='needs /proc to compare with')
def test_peak_memory_is_in_the_progress_line(runner):
    tag, line = runner.log_processor.get_log_after_iter(runner, 0, 'train')
    peak = int(re.search(r'VmHWM:\s+(\d+) kB', STATUS.read_text())[1]) / 2**10
    assert tag['memory'] == pytest.approx(peak, rel=0.02)
    assert re.search(rf'loss: .*  memory: {tag["memory"]}$', line)


def test_validation_lines_stay_as_they_are(runner):
    tag, line = runner.log_processor.get_log_after_iter(runner, 0, 'val')
    assert 'memory' not in tag
    assert 'memory' not in line
