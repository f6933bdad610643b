import argparse

import pytest
import torch

from kat_mm.command_line import (
    check_file,
    check_folder,
    choose_device,
    load_callable,
    positive,
)
from kat_mm.errors import ConfigError
from kat_mm.rational.reference import rational_reference


def test_loads_a_function():
    assert (
        load_callable('kat_mm.rational.reference:rational_reference', '--provider')
        is rational_reference
    )


@pytest.mark.parametrize(
    ('name', 'message'),
    [
        ('my_ops', 'must be module:callable, such as my_ops.rational:rational'),
        (':rational', 'must be module:callable'),
        ('my_ops:', 'must be module:callable'),
        ('my_ops:a b', 'must be module:callable'),
        (
            'my_gone_ops:rational',
            r"my_gone_ops cannot be imported \(ModuleNotFoundError: No module named 'my_gone_ops'"
            r'\); its folder must be in PYTHONPATH',
        ),
        (
            'kat_mm.rational:rationel',
            'kat_mm.rational has no function rationel; it has: rational, ',
        ),
    ],
)
def test_names_that_cannot_be_loaded(name, message):
    with pytest.raises(ConfigError, match=f'--provider {name}: {message}'):
        load_callable(name, '--provider')


def test_choose_device():
    assert choose_device('cpu') == torch.device('cpu')
    assert choose_device(None).type == ('cuda' if torch.cuda.is_available() else 'cpu')


@pytest.mark.parametrize(
    ('name', 'message'),
    [
        ('gpu', '--device gpu: must be cuda or cpu'),
        ('meta', '--device meta: must be cuda or cpu'),
        ('cuda:99', r'--device cuda:99: torch finds \d+ GPUs; use --device cpu'),
    ],
)
def test_devices_that_are_not_there(name, message):
    with pytest.raises(ConfigError, match=message):
        choose_device(name)


@pytest.mark.parametrize('text', ['0', '-1', '1.5', 'many', ''])
def test_counts_start_at_one(text):
    assert positive('12') == 12
    with pytest.raises(argparse.ArgumentTypeError, match=f'from 1 on, got {text!r}'):
        positive(text)


def test_places_to_write_to(tmp_path):
    check_file('--plot', tmp_path / 'new' / 'a.png', '.png')
    check_file('--json', tmp_path / 'new' / 'any')
    check_folder('--out', tmp_path / 'other' / 'one')
    assert {p.name for p in tmp_path.iterdir()} == {'new', 'other'}
    file = tmp_path / 'file'
    file.touch()
    for check, message in (
        (lambda: check_file('--plot', file, '.png'), r'--plot .*file: the name must end with .png'),
        (lambda: check_file('--json', tmp_path), '--json .*: is a folder; name a file'),
        (lambda: check_file('--json', file / 'a'), '--json .*/a: cannot be written .File'),
        (lambda: check_folder('--out', file), '--out .*file: cannot be a folder .FileExists'),
    ):
        with pytest.raises(ConfigError, match=message):
            check()
