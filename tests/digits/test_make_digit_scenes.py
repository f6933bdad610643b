import os
import runpy
import subprocess
import sys
from pathlib import Path

import cv2
import pytest

ROOT = Path(__file__).parents[2]
TOOL = ROOT / 'tools' / 'make_digit_scenes.py'


def run_as_program(*arguments, cwd):
    """Run the program the way a user does, with the checkout importable."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get('PYTHONPATH')]))
    return subprocess.run(
        [sys.executable, str(TOOL), *arguments],
        cwd=cwd,
        env={**os.environ, 'PYTHONPATH': path},
        capture_output=True,
        text=True,
        timeout=120,
    )


def run_here(monkeypatch, cwd, *arguments):
    """Run the program in this process, which spares its imports."""
    monkeypatch.chdir(cwd)
    monkeypatch.setattr(sys, 'argv', [str(TOOL), *arguments])
    runpy.run_path(str(TOOL), run_name='__main__')


ARGUMENTS = ['--train', '3', '--val', '2', '--size', '48', '64', '--seed', '5']


def test_make_again_and_conflict(tmp_path, monkeypatch, capsys):
    made = run_as_program(*ARGUMENTS, '--preview', 'pictures/preview.png', cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    assert '3 train and 2 val scenes written' in made.stdout
    image = tmp_path / 'data' / 'digit_scenes' / 'images' / 'val' / '000001.png'
    assert cv2.imread(str(image)).shape == (48, 64, 3)
    assert cv2.imread(str(tmp_path / 'pictures' / 'preview.png')) is not None
    stamp = image.stat().st_mtime_ns

    run_here(monkeypatch, tmp_path, *ARGUMENTS)
    assert 'already there' in capsys.readouterr().out
    assert image.stat().st_mtime_ns == stamp

    conflict = run_as_program(*ARGUMENTS, '--max-digits', '3', cwd=tmp_path)
    assert conflict.returncode == 1
    assert conflict.stderr.count('\n') == 1
    assert 'max_digits 6 instead of 3' in conflict.stderr
    assert '--overwrite' in conflict.stderr
    assert image.stat().st_mtime_ns == stamp

    run_here(monkeypatch, tmp_path, *ARGUMENTS, '--max-digits', '3', '--overwrite')
    assert 'written' in capsys.readouterr().out
    assert os.listdir(tmp_path / 'data') == ['digit_scenes']


@pytest.mark.parametrize(
    ('arguments', 'text'),
    [
        (['--train', '-1'], 'train scenes must be 0 or more, not -1'),
        (['--size', '16', '128'], 'at least 32 pixels'),
        (['--max-digits', '99'], 'at most 11'),
        (['--preview', 'sheet.jpg'], 'must end in .png'),
    ],
)
def test_wrong_arguments_give_one_line(tmp_path, monkeypatch, arguments, text):
    with pytest.raises(SystemExit) as stop:
        run_here(monkeypatch, tmp_path, *arguments)
    # Python prints a text that it exits with to stderr and makes the status 1.
    assert stop.value.code.startswith('error: ')
    assert '\n' not in stop.value.code
    assert text in stop.value.code
    assert os.listdir(tmp_path) == []
