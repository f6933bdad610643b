"""Studies are read from files, and what is wrong in one is told in one line."""

import re
from pathlib import Path

import pytest

from kat_mm.benchmarking.studies.study import SCORES, flat, read_study
from kat_mm.errors import ConfigError

SHIPPED = sorted((Path(__file__).parents[3] / 'configs' / 'studies').glob('*.py'))


@pytest.mark.parametrize('path', SHIPPED, ids=lambda path: path.stem)
def test_shipped_studies(path):
    study = read_study(path)
    assert len(study.seeds) >= 3
    assert all({*task.scores} <= {*SCORES} for task in study.tasks.values())
    assert study.quick


def test_the_study_of_attention():
    study = read_study(next(path for path in SHIPPED if path.stem == 'attention'))
    assert [*study.tasks] == ['detection', 'segmentation']
    assert {v.after for v in study.variants.values() if v.name.startswith('tuned')} == {
        'mlp-softmax'
    }
    names = ('ffn', 'attention.type', 'attention.base')
    scratch = [
        tuple(variant.options.get(f'model.backbone.{name}') for name in names)
        for variant in study.variants.values()
        if variant.after is None
    ]
    assert len(scratch) == len({*scratch}) == 6


def test_a_study(study):
    assert study.name == 'widths'
    assert [(v.name, v.title, v.after) for v in study.variants.values()] == [
        ('narrow', 'narrow', None),
        ('wide', 'Wide', None),
        ('tuned', 'tuned', 'wide'),
    ]
    assert study.variants['wide'].options == {'model.width': 2}
    assert flat({'a': {'b': {'c': 1}, 'd': [2]}, 'e.f': 3}) == {'a.b.c': 1, 'a.d': [2], 'e.f': 3}


@pytest.mark.parametrize(
    ('old', 'new', 'message'),
    [
        ("after='wide'", "after='wid'", "there is no variant after='wid'; did you mean wide?"),
        ("after='wide'", "after='zzz'", "after='zzz'; known: narrow, wide, tuned"),
        ("after='wide'", "after='tuned'", "'tuned']: after goes in a circle: tuned <- tuned"),
        ("title='Wide'", "after='tuned'", "'wide']: after goes in a circle: wide <- tuned <- wide"),
        ('(0, 1)', '(1, 1)', 'seeds=(1, 1) has one twice'),
        ('(0, 1)', '()', 'seeds is missing or empty'),
        ('(0, 1)', "('a',)", "seeds[0]='a' must be a whole number from 0 on"),
        ("'mIoU'", "'accuracy'", "scores=('accuracy',) must be of box AP, mask AP, mIoU"),
        ("'config.py'", "'gone.py'", 'gone.py does not exist'),
        (", scores=['mIoU']", '', "tasks['small'] must have config and scores, got config"),
        ("'model.width': 1", "'model.width': object()", 'must be a text, a number, True, False'),
        ("title='Wide'", "titel='Wide'", "'wide'] takes options, after and title, not titel"),
        ("'narrow'", "'a/b'", "variants: 'a/b' must be letters, digits and _ . + -"),
        ('seeds', '1 / 0; seeds', 'cannot be read: ZeroDivisionError: division by zero'),
        ('seeds', '(; seeds', 'cannot be read: SyntaxError'),
    ],
)
def test_mistakes(study_file, old, new, message):
    text = study_file.read_text()
    assert old in text
    study_file.write_text(text.replace(old, new, 1))
    with pytest.raises(ConfigError, match=re.escape(message)) as error:
        read_study(study_file)
    assert str(error.value).startswith(f'study {study_file}')
    assert '\n' not in str(error.value)


def test_missing_study(study_file):
    with pytest.raises(ConfigError, match=r'wides\.py does not exist; did you mean widths\.py'):
        read_study(study_file.with_name('wides.py'))
    with pytest.raises(ConfigError, match='does not exist; give the path of its file'):
        read_study('zzz')
