"""Runs have folders by their settings, come in a useful order, and are held by one at a time."""

import os

import pytest

from kat_mm.benchmarking.studies.runs import as_text, held, plan
from kat_mm.benchmarking.studies.study import read_study
from kat_mm.errors import ConfigError
from kat_mm.openmmlab.settings import parse_settings


def folders(runs):
    return {(run.variant.name, run.seed): run.folder for run in runs}


def test_order(runs):
    """What others wait for comes first, then seed by seed."""
    assert [(run.variant.name, run.seed) for run in runs] == [
        *(('wide', 0), ('wide', 1)),
        *(('narrow', 0), ('tuned', 0), ('narrow', 1), ('tuned', 1)),
    ]
    assert {run.parent.name for run in runs if run.parent} == {
        'small/wide, seed 0',
        'small/wide, seed 1',
    }


@pytest.mark.parametrize(
    ('old', 'new', 'changed'),
    [
        ("'narrow': {'model.width': 1}", "'narrow': {'model.width': 5}", {'narrow'}),
        ("{'width': 2}", "{'width': 6}", {'wide', 'tuned'}),  # one starts from the other
        ("title='Wide'", "title='Wider'", set()),
        ('seeds', "options = {'model.height': 1}\nseeds", {'narrow', 'wide', 'tuned'}),
    ],
)
def test_changed_settings_get_other_folders(study_file, runs, tmp_path, resolve, old, new, changed):
    text = study_file.read_text()
    assert old in text
    study_file.write_text(text.replace(old, new))
    again = folders(plan(read_study(study_file), tmp_path / 'work', resolve))
    before = folders(runs)
    assert len({*before.values()}) == len(before) == 6
    assert {name for name, seed in before if before[name, seed] != again[name, seed]} == changed


def test_changed_config_gets_other_folders(study, runs, tmp_path, resolve):
    (tmp_path / 'config.py').write_text('depth = 2')
    again = folders(plan(study, tmp_path / 'work', resolve))
    assert not {*again.values()} & {*folders(runs).values()}


def test_quick_settings_come_last(study_file, runs, tmp_path, resolve):
    study_file.write_text(study_file.read_text() + "quick = {'model.width': 9}\n")
    study = read_study(study_file)
    quick = plan(study, tmp_path / 'work', resolve, quick=True)
    assert {run.options['model.width'] for run in quick} == {9}
    assert folders(plan(study, tmp_path / 'work', resolve)) == folders(runs)


def test_quick_without_settings(study, tmp_path, resolve):
    with pytest.raises(ConfigError, match='--quick: study widths has no settings quick=dict'):
        plan(study, tmp_path, resolve, quick=True)


def test_settings_that_a_config_does_not_take(study, tmp_path):
    def refuse(config, options):
        raise ConfigError(f'no {options[0]}')

    with pytest.raises(ConfigError, match=r'small/narrow: no model\.width=1'):
        plan(study, tmp_path, refuse)


@pytest.mark.parametrize(
    'value',
    [
        *(1, -2, 0.5, 1e-5, True, False, None, 'mlp', 'a b', 'a,b', 'a(b', "it's"),
        *([1, 2], (5, 4), [], [0.1], ('identity', 'swish'), [[1, 2], [3, 4]], [True, None]),
    ],
)
def test_settings_are_read_as_they_were(value):
    assert parse_settings([f'a.b={as_text(value)}']) == {'a.b': value}


def test_a_folder_is_held_by_one_at_a_time(tmp_path):
    with held(tmp_path / 'run') as first:
        copy = os.dup(first)  # as a process that inherits it has one
        with held(tmp_path / 'run') as second:
            assert second is None
    with held(tmp_path / 'run') as third:
        assert third is None
    os.close(copy)
    with held(tmp_path / 'run') as fourth:
        assert fourth is not None
