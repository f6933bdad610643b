"""Actions at the import of another package, from folders and archives, and with other finders."""

import importlib
import importlib.util
import inspect
import sys
import warnings
import zipfile

import pytest

from kat_mm import post_import
from kat_mm.post_import import when_imported

FILES = {
    'alpha_pkg/__init__.py': 'value = 1\n',
    'alpha_pkg/part.py': 'def f():\n    return 2\n',
    'alpha_pkg/data.txt': 'text',
    'beta_pkg.py': 'import alpha_pkg.part\n',
    'broken_pkg.py': 'raise RuntimeError("broken")\n',
}


def in_folder(path):
    for name, text in FILES.items():
        file = path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return path


def in_archive(path):
    with zipfile.ZipFile(path / 'all.zip', 'w') as file:
        for name, text in FILES.items():
            file.writestr(name, text)
    return path / 'all.zip'


@pytest.fixture(params=[in_folder, in_archive])
def packages(request, tmp_path, monkeypatch):
    """A folder, or an archive, with several packages to import, and nothing watched."""
    monkeypatch.syspath_prepend(str(request.param(tmp_path)))
    monkeypatch.setattr(post_import, '_ACTIONS', {})
    monkeypatch.setattr(sys, 'meta_path', [post_import._FINDER, *sys.meta_path])
    yield
    for name in [n for n in sys.modules if n.partition('.')[0] in ('alpha_pkg', 'beta_pkg')]:
        del sys.modules[name]


@pytest.fixture
def seen(packages):
    return []


@pytest.mark.parametrize('name', ['alpha_pkg', 'alpha_pkg.part', 'beta_pkg'])
def test_acts_once_for_the_one_name(seen, name):
    when_imported(name, seen.append, 'note it')
    import beta_pkg  # noqa: F401

    assert seen == [sys.modules[name]]


def test_several_actions_in_their_order(seen):
    when_imported('alpha_pkg', lambda _: seen.append(1), 'note it')
    when_imported('beta_pkg', lambda _: seen.append(3), 'note it')
    when_imported('alpha_pkg', lambda _: seen.append(2), 'note it')
    import beta_pkg  # noqa: F401

    assert seen == [1, 2, 3]


def test_the_same_action_counts_once(seen):
    for _ in range(2):
        when_imported('alpha_pkg', seen.append, 'note it')
    import alpha_pkg

    when_imported('alpha_pkg', seen.append, 'note it')
    assert seen == [alpha_pkg]


def test_imported_before(seen):
    import alpha_pkg

    when_imported('alpha_pkg', seen.append, 'note it')
    assert seen == [alpha_pkg]


def test_reload(seen):
    when_imported('alpha_pkg', seen.append, 'note it')
    import alpha_pkg

    importlib.reload(alpha_pkg)
    assert seen == [alpha_pkg] * 2


def test_the_module_is_as_without_it(seen):
    import alpha_pkg.part as plain

    loader = type(plain.__loader__)
    del sys.modules['alpha_pkg'], sys.modules['alpha_pkg.part']
    for name in ('alpha_pkg', 'alpha_pkg.part'):
        when_imported(name, seen.append, 'note it')
    import alpha_pkg.part

    for module in (alpha_pkg, alpha_pkg.part):
        assert type(module.__loader__) is type(module.__spec__.loader) is loader
        assert 'exec_module' not in vars(module.__loader__)
    assert inspect.getsource(alpha_pkg.part) == FILES['alpha_pkg/part.py']
    assert importlib.resources.files('alpha_pkg').joinpath('data.txt').read_text() == 'text'


def test_the_spec_alone(seen):
    """Looking for a module acts on nothing, and its loader answers what loaders are asked."""
    when_imported('beta_pkg', seen.append, 'note it')
    spec = importlib.util.find_spec('beta_pkg')
    assert spec.loader.get_source('beta_pkg') == FILES['beta_pkg.py']
    assert 'beta_pkg' not in sys.modules
    assert not seen


class Another:
    """A finder of another package that watches too: it asks all finders for what it watches."""

    def __init__(self):
        self.busy = False

    def find_spec(self, name, path=None, target=None):
        if self.busy:
            return None
        self.busy = True
        try:
            return importlib.util.find_spec(name)
        finally:
            self.busy = False


@pytest.mark.parametrize('place', [0, 1])
def test_beside_another_such_finder(seen, place):
    sys.meta_path.insert(place, Another())
    when_imported('alpha_pkg', seen.append, 'note it')
    import alpha_pkg

    assert seen == [alpha_pkg]


def test_found_by_a_finder_of_its_own(seen, tmp_path):
    """As packages are that pip has installed editable."""

    class Editable:
        def find_spec(self, name, path=None, target=None):
            if name == 'gamma_pkg':
                return importlib.util.spec_from_file_location(name, tmp_path / 'gamma.py')

    (tmp_path / 'gamma.py').write_text('')
    sys.meta_path.append(Editable())
    when_imported('gamma_pkg', seen.append, 'note it')
    import gamma_pkg

    del sys.modules['gamma_pkg']
    assert seen == [gamma_pkg]


@pytest.mark.parametrize('first', [True, False])
def test_a_failing_action_ends_no_import(seen, first):
    def fail(_):
        raise LookupError('no such function\nin alpha_pkg')

    if first:
        import alpha_pkg
    message = (
        'kat_mm cannot note it (LookupError: no such function). alpha_pkg works as without '
        'kat_mm; to have both, upgrade alpha_pkg or kat_mm'
    )
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter('always')
        when_imported('alpha_pkg', fail, 'note it')
        when_imported('alpha_pkg', seen.append, 'note it')
        import alpha_pkg
    assert [str(warning.message) for warning in warned] == [message]
    assert seen == [alpha_pkg]


def test_a_failing_import_fails_as_ever(seen):
    when_imported('broken_pkg', seen.append, 'note it')
    when_imported('missing_pkg', seen.append, 'note it')
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        with pytest.raises(RuntimeError, match='broken'):
            import broken_pkg  # noqa: F401
        with pytest.raises(ModuleNotFoundError, match="No module named 'missing_pkg'"):
            import missing_pkg  # noqa: F401
    assert not seen
