"""setup.py with compilers that fail, are wrapped or missing; sources that are built elsewhere.

The compilers here are scripts, so that nothing is compiled.
"""

import os
import runpy
import shutil
import subprocess
import sys
import sysconfig
import tarfile
from pathlib import Path

import pytest
import torch
from torch.utils import cpp_extension

from kat_mm.rational.cpp_autograd import VARIABLE, module_name
from kat_mm.rational.schemas import MARK

ROOT = Path(__file__).parents[1]
# Writes the file that -o names.
COMPILES = 'while [ $# -gt 0 ]; do [ "$1" = -o ] && echo compiled > "$2"; shift; done\n'
FAILS = 'echo "In file included from x.h:1"; echo "$2.cpp:7:3: error: no such thing"; exit 1\n'
NVCC = """case "$*" in
  --version) echo 'Cuda compilation tools, release 13.0, V13.0.88'; exit;;
  --list-gpu-arch) echo compute_90; exit;;
  --dryrun*) exit;;
esac
"""


PYTHON_FILES = ('kat_mm/__init__.py', 'kat_mm/rational/schemas.py')


@pytest.fixture
def build(tmp_path, monkeypatch):
    """Returns a function that runs build_ext with fake compilers in a copy of the sources."""
    tree = tmp_path / 'tree'
    for name in ('setup.py', 'ops', 'configs', 'tools', 'model-index.yml', *PYTHON_FILES):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tree / name)

    def program(name: str, code: str) -> Path:
        path = tmp_path / 'bin' / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f'#!/bin/sh\n{code}')
        path.chmod(0o755)
        return path

    monkeypatch.chdir(tree)
    monkeypatch.setattr(cpp_extension, 'CUDA_HOME', str(tmp_path))
    monkeypatch.setattr(torch.version, 'cuda', '13.0')
    monkeypatch.setenv('PATH', f'{tmp_path / "bin"}{os.pathsep}{os.environ["PATH"]}')
    monkeypatch.setenv('TORCH_CUDA_ARCH_LIST', '9.0')
    for name in ('CC', 'TORCH_NO_COMPILER_WRAPPER', 'KAT_MM_BUILD', VARIABLE):
        monkeypatch.delenv(name, raising=False)

    def run(cxx=COMPILES, nvcc=COMPILES, command='{}', arguments=('--inplace',)) -> list[str]:
        compiler = program('g++', f'case "$*" in *dumpversion*) echo 12.2.0; exit;; esac\n{cxx}')
        monkeypatch.setenv('CXX', command.format(compiler))
        program('nvcc', NVCC + nvcc)
        monkeypatch.setattr(sys, 'argv', ['setup.py', '-q', 'build_ext', *arguments])
        runpy.run_path('setup.py', run_name='__main__')
        return sorted(path.name for path in (tree / 'kat_mm').glob('_C_*'))

    run.program, run.tree = program, tree
    return run


KERNELS = [f'_C_cpu_{MARK}.abi3.so', f'_C_cuda_{MARK}.abi3.so']
AUTOGRAD = module_name(torch.__version__) + sysconfig.get_config_var('EXT_SUFFIX')
LIBRARIES = [AUTOGRAD, *KERNELS]


def test_parts_fail_apart(build, capfd):
    for part in ('cuda', 'autograd'):
        (build.tree / 'kat_mm' / f'_C_{part}_00000000.abi3.so').touch()
    assert build(nvcc=FAILS) == [*LIBRARIES[:2], '_C_cuda.failed']
    failure = (build.tree / 'kat_mm' / '_C_cuda.failed').read_text()
    assert failure.endswith('.cpp:7:3: error: no such thing\n')
    printed = capfd.readouterr().out
    assert 'In file included from x.h:1' in printed
    assert f'kat_mm: the CUDA kernels are not built: {failure.strip()}; the op runs in' in printed
    assert build() == LIBRARIES  # nothing is left of the failure


def test_autograd_fails_apart(build, capfd, monkeypatch):
    fails = f'case "$*" in *ops/autograd*) {FAILS.strip()};; esac\n{COMPILES}'
    assert build(cxx=fails) == ['_C_autograd.failed', *KERNELS]
    message = 'kat_mm: the autograd nodes in C++ are not built: '
    assert message in capfd.readouterr().out
    monkeypatch.setenv('KAT_MM_BUILD', 'required')
    with pytest.raises(SystemExit, match=r'autograd nodes in C\+\+ are not built: .*no such thing'):
        build(cxx=fails)


@pytest.mark.parametrize(
    ('wish', 'arguments', 'is_built'),
    [
        ('0', ('--inplace',), False),
        ('1', ('--inplace',), True),
        (None, ('--inplace', 'bdist_wheel'), False),
        ('1', ('--inplace', 'bdist_wheel'), True),
    ],
)
def test_where_autograd_is_built(build, monkeypatch, wish, arguments, is_built):
    """Not in wheels, which are for other versions of torch and Python too."""
    if wish is not None:
        monkeypatch.setenv(VARIABLE, wish)
    assert build(arguments=arguments) == (LIBRARIES if is_built else KERNELS)
    monkeypatch.setenv(VARIABLE, 'off')
    with pytest.raises(SystemExit, match="KAT_MM_CPP_AUTOGRAD is 'off'; it can be '0', '1', or"):
        build()


def test_what_is_required_ends_the_build(build, monkeypatch):
    monkeypatch.setenv('KAT_MM_BUILD', 'required')
    assert build() == LIBRARIES
    with pytest.raises(
        SystemExit, match=r'CPU kernels are not built: .*error: no such thing \(and'
    ):
        build(cxx=FAILS)
    monkeypatch.setattr(cpp_extension, 'CUDA_HOME', None)
    with pytest.raises(SystemExit, match=r'kernels are not built: nvcc was not found .*\(and KAT_'):
        build()
    monkeypatch.setenv('KAT_MM_BUILD', 'always')
    with pytest.raises(SystemExit, match="KAT_MM_BUILD is 'always'; it can be 'required', or not"):
        build()


@pytest.mark.parametrize('launcher', ['ccache', 'launch'])
def test_compilers_of_several_words(build, tmp_path, launcher):
    build.program(launcher, f'echo "$1" >> {tmp_path}/launched\nexec "$@"\n')
    assert build(command=f'{launcher} {{}} -m64') == LIBRARIES
    launched = set((tmp_path / 'launched').read_text().split())
    assert str(tmp_path / 'bin' / 'g++') in launched
    assert os.environ['CXX'].startswith(launcher)


def test_missing_programs_are_named(build, capfd, monkeypatch):
    for command in ('no-such-launcher {}', 'env no-such-compiler'):
        assert build(command=command) == []
        name = command.replace(' {}', '').split()[-1]
        assert (
            f'the op is not built: no C++ compiler was found: no {name}' in capfd.readouterr().out
        )
    assert build(nvcc=COMPILES) == LIBRARIES
    monkeypatch.setattr(cpp_extension, 'CUDA_HOME', '/nonexistent')
    assert build()[:2] == LIBRARIES[:2]
    assert 'the CUDA kernels are not built: nvcc does not run: ' in capfd.readouterr().out


def test_linkers_other_than_gnu(build, tmp_path):
    """No option of the linker is ours."""
    build(cxx=f'echo "$@" >> {tmp_path}/commands\n{COMPILES}')
    words = (tmp_path / 'commands').read_text().split()
    assert '-shared' in words
    assert not {'-s', '-Wl,--as-needed'} & set(words)


def test_source_distribution(tmp_path):
    command = [
        sys.executable,
        'setup.py',
        '-q',
        'egg_info',
        '-e',
        tmp_path,
        'sdist',
        '-d',
        tmp_path,
    ]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    [archive] = tmp_path.glob('*.tar.gz')
    with tarfile.open(archive) as tar:
        names = {name.partition('/')[2] for name in tar.getnames()}
    for folder in ('kat_mm', 'ops', 'configs', 'tools', 'tests'):
        files = {path for path in (ROOT / folder).rglob('*') if path.is_file()}
        files = {path for path in files if path.suffix not in ('.pyc', '.so', '.failed')}
        assert {str(path.relative_to(ROOT)) for path in files} <= names
    assert {'model-index.yml', 'requirements.txt', 'README.md', 'LICENSE', 'Makefile'} <= names
    assert not [name for name in names if name.endswith(('.so', '.pyc', '.failed'))]


@pytest.mark.parametrize('venv', ['/my venv', 'two words/venv'])
def test_make_refuses_spaces(venv):
    command = ['make', '--no-print-directory', '-n', 'demo', f'VENV={venv}']
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 2
    assert f'*** VENV is "{venv}": make takes no path with spaces' in result.stderr
    assert not result.stdout


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which('g++'), reason='needs g++')
def test_errors_where_each_library_has_a_runtime_of_its_own(tmp_path):
    """As some compilers link libstdc++, which an exception then cannot leave."""
    for name in ('setup.py', 'ops', 'kat_mm'):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / name)
    for library in (tmp_path / 'kat_mm').glob('_C_*'):
        library.unlink()
    environment = {
        **os.environ,
        **{'CUDA_HOME': str(tmp_path), 'CXX': 'g++ -static-libstdc++', 'KAT_MM_CPP_AUTOGRAD': '0'},
    }
    call = """import torch
from kat_mm.rational.op import compiled_devices
assert 'cpu' in compiled_devices()
try:
    torch.ops.kat_mm.rational(torch.zeros(4, 12), torch.zeros(1, 6), torch.zeros(8, 4))
except RuntimeError as error:
    print(error)
"""
    for command in (['setup.py', '-q', 'build_ext', '--inplace'], ['-W', 'ignore', '-c', call]):
        run = subprocess.run(
            [sys.executable, *command],
            cwd=tmp_path,
            env={**environment, 'PYTHONPATH': str(tmp_path)},
            capture_output=True,
            text=True,
        )
        assert not run.returncode, run.stderr
    assert run.stdout.strip() == 'rational: 12 channels cannot be divided into 8 groups'
