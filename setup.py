"""Builds kat_mm and its compiled op: one binary for every CPython >= 3.10 and torch >= 2.10.

The CUDA part is built where nvcc is found, with or without a GPU. TORCH_CUDA_ARCH_LIST chooses the
GPU architectures, by default one of each generation that both this torch and this nvcc support.
What cannot be built is left out, with a line that says why: kat_mm then runs in plain PyTorch. With
KAT_MM_BUILD=required it is an error, and so is a CUDA part that this torch could use.

The autograd nodes in C++ are a library apart, bound to this torch and this Python. Wheels are for
others too, and go without it; KAT_MM_CPP_AUTOGRAD=1 puts it into them, and 0 leaves it out of all.
"""

import contextlib
import itertools
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from unittest import mock

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
TARGET_FLAG = '-DTORCH_TARGET_VERSION=0x020a000000000000'  # the stable ABI of torch 2.10
CUDA_SOURCES = sorted(str(path.relative_to(ROOT)) for path in ROOT.glob('ops/cuda/*.cu'))
HEADERS = sorted(str(path.relative_to(ROOT)) for path in ROOT.glob('ops/**/*.*h'))
EXTRAS = {
    'test': ['pytest', 'pytest-xdist', 'hypothesis', 'model-index'],
    'export': ['onnx', 'onnxscript', 'onnxruntime'],  # of backbones to ONNX
}
CXX_FLAGS = ['-O3', '-g0', '-fvisibility=hidden', TARGET_FLAG]
MARK = runpy.run_path(str(ROOT / 'kat_mm/rational/schemas.py'))['MARK']
AUTOGRAD = f'_C_autograd_{MARK}_torch_'  # and the version of torch
WITHOUT = {
    'autograd': 'small calls take longer without',
    'kernels': 'the op runs in plain PyTorch without, correct but slow',
}
# The first of these in the output of a compiler or linker is what went wrong.
ERROR = re.compile(r'\b(error( #?\w+)?|fatal) *:|cannot find|undefined (reference|symbol)')


def leave_out(what: str, reason: str, kind: str = 'kernels') -> None:
    """Says what is not built and why, which ends the build where it is required."""
    message = f'kat_mm: {what} not built: {reason}'
    if os.environ.get('KAT_MM_BUILD') == 'required':
        raise SystemExit(f'{message} (and KAT_MM_BUILD=required)')
    print(f'{message}; {WITHOUT[kind]}')


def nvcc_output(cuda_home: str, *options: str) -> str:
    command = [f'{cuda_home}/bin/nvcc', *options]
    return subprocess.check_output(command, text=True, stderr=subprocess.STDOUT)


def cuda_library_dirs(cuda_home: str) -> list[str]:
    """Returns where nvcc itself links from: torch's guess misses an nvcc that is a wrapper."""
    return re.findall(r'"-L([^"]+)"', nvcc_output(cuda_home, '--dryrun', CUDA_SOURCES[0]))


def cuda_arch_list(cuda_home: str) -> str:
    """Returns the oldest architecture of each generation known to torch and nvcc, PTX for more.

    Machine code for one architecture runs on all later ones of its generation.
    """
    import torch

    nvcc = re.findall(r'compute_(\d+)', nvcc_output(cuda_home, '--list-gpu-arch'))
    built = re.findall(r'sm_(\d+)', torch._C._cuda_getArchFlags() or '')
    generations = {}
    for arch in sorted({int(number) for number in nvcc} & {int(number) for number in built}):
        generations.setdefault(arch // 10, f'{arch // 10}.{arch % 10}')
    return ';'.join(generations.values()) + '+PTX'


def why_not_cuda(cuda_home: str | None) -> str | None:
    """Returns the reason why the CUDA kernels cannot be built, if there is one."""
    import torch

    if not cuda_home:
        return 'nvcc was not found (set CUDA_HOME to a CUDA toolkit)'
    release = re.search(r'release (\d+)', nvcc_output(cuda_home, '--version'))[1]
    if release != torch.version.cuda.split('.')[0]:
        return f'nvcc is of CUDA {release} and torch of CUDA {torch.version.cuda}'
    return None


def compilers_not_found() -> list[str]:
    """Returns the programs that $CXX names, such as `ccache g++`, and that are not there."""
    words = shlex.split(os.environ.get('CXX') or 'c++')
    return [word for word in {words[0], compiler_of(words)} if not shutil.which(word)]


def compiler_of(words: list[str]) -> str:
    """Returns the compiler in a command that may begin with launchers and end with options."""
    return [*itertools.takewhile(lambda word: not word.startswith('-'), words)][-1]


def extensions() -> list:
    """Describes the libraries to build."""
    wish = os.environ.get('KAT_MM_BUILD', '')
    if wish not in ('', 'required'):
        raise SystemExit(f"kat_mm: KAT_MM_BUILD is {wish!r}; it can be 'required', or not set")
    try:
        import torch
        from torch.utils import cpp_extension
    except ImportError:
        leave_out('the op is', 'torch is not installed in this environment')
        return []
    if tuple(int(part) for part in torch.__version__.split('.')[:2]) < (2, 10):
        leave_out('the op is', f'it needs torch >= 2.10, this is {torch.__version__}')
        return []
    if missing := compilers_not_found():
        leave_out(
            'the op is', f'no C++ compiler was found: no {missing[0]} (install one or set CXX)'
        )
        return []
    parts = [
        cpp_extension.CppExtension(
            f'kat_mm._C_cpu_{MARK}',
            ['ops/cpu/rational.cpp'],
            depends=HEADERS,
            extra_compile_args={'cxx': CXX_FLAGS},
            py_limited_api=True,
        )
    ]
    if wants_autograd():
        parts.append(autograd_extension())
    if not torch.version.cuda:
        print('kat_mm: the CUDA kernels are not built: this torch has no CUDA')
        return parts
    try:
        reason = why_not_cuda(cpp_extension.CUDA_HOME)
        if reason is None:
            parts.append(cuda_extension(cpp_extension.CUDA_HOME))
    except (OSError, subprocess.CalledProcessError) as error:
        reason = f'nvcc does not run: {error}'
    if reason:
        leave_out('the CUDA kernels are', reason)
    return parts


def wants_autograd() -> bool:
    """Tells whether the autograd nodes in C++ are to be built."""
    wish = os.environ.get('KAT_MM_CPP_AUTOGRAD', '')
    if wish not in ('', '0', '1'):
        raise SystemExit(f"kat_mm: KAT_MM_CPP_AUTOGRAD is {wish!r}; it can be '0', '1', or not set")
    return wish == '1' or (wish == '' and 'bdist_wheel' not in sys.argv)


def autograd_extension():
    """Describes the library of autograd nodes, with the headers of torch that are not stable."""
    import torch
    from torch.utils import cpp_extension

    # As kat_mm/rational/cpp_autograd.py looks for it.
    version = re.sub('[^0-9A-Za-z]', '_', torch.__version__)
    return cpp_extension.CppExtension(
        f'kat_mm.{AUTOGRAD}{version}',
        ['ops/autograd/module.cpp'],
        depends=[f'ops/autograd/{name}.h' for name in ('plain', 'node', 'ops', 'linear')],
        extra_compile_args={'cxx': ['-O3', '-g0', '-fvisibility=hidden']},
    )


def cuda_extension(cuda_home: str):
    """Describes the library of CUDA kernels."""
    from torch.utils import cpp_extension

    os.environ.setdefault('TORCH_CUDA_ARCH_LIST', cuda_arch_list(cuda_home))
    return cpp_extension.CUDAExtension(
        f'kat_mm._C_cuda_{MARK}',
        CUDA_SOURCES,
        library_dirs=cuda_library_dirs(cuda_home),
        depends=HEADERS,
        extra_compile_args={
            'cxx': [*CXX_FLAGS, '-DUSE_CUDA'],
            # Several architectures are compiled at a time, one for each core.
            'nvcc': ['-O3', '--threads=0', '-DUSE_CUDA', TARGET_FLAG],
        },
        py_limited_api=True,
    )


class BuildWithConfigs(build_py):
    """Adds the configs and tools where OpenMMLab's package manager, mim, looks for them."""

    def run(self):
        super().run()
        if self.editable_mode:
            return
        mim = Path(self.build_lib, 'kat_mm', '.mim')
        for folder in ('configs', 'tools'):
            ignored = shutil.ignore_patterns('__pycache__')
            shutil.copytree(ROOT / folder, mim / folder, ignore=ignored, dirs_exist_ok=True)
        shutil.copy(ROOT / 'model-index.yml', mim)


@contextlib.contextmanager
def output_lines():
    """Gives the lines that are printed meanwhile, also by other programs, and prints them too."""
    lines, saved = [], {number: os.dup(number) for number in (1, 2)}
    read, write = os.pipe()

    def copy():
        with os.fdopen(read, errors='replace') as pipe:
            for line in pipe:
                lines.append(line.strip())
                os.write(saved[1], line.encode())

    def flush():
        sys.stdout.flush()
        sys.stderr.flush()

    copier = threading.Thread(target=copy)
    copier.start()
    flush()
    for number in saved:
        os.dup2(write, number)
    os.close(write)
    try:
        yield lines
    finally:
        flush()
        for number, stream in saved.items():
            os.dup2(stream, number)
        copier.join()
        for stream in saved.values():
            os.close(stream)


@contextlib.contextmanager
def compilers_of_one_word():
    """Makes $CC and $CXX of several words, such as `ccache g++`, programs: torch wants one word."""
    with tempfile.TemporaryDirectory() as folder, mock.patch.dict(os.environ):
        for name in ('CC', 'CXX'):
            words = shlex.split(os.environ.get(name, ''))
            if len(words) < 2 or os.name != 'posix':
                continue
            # By the name of the compiler, which torch goes by.
            program = Path(folder, name, Path(compiler_of(words)).name)
            program.parent.mkdir()
            program.write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n')
            program.chmod(0o755)
            os.environ[name] = str(program)
            os.environ['TORCH_NO_COMPILER_WRAPPER'] = '1'  # it would add ccache to ccache
        yield


class BuildPartsApart:
    """Builds each library by itself; one that fails is left out, with its first error on record.

    The record is a file in the place of the library, for the warning of `import kat_mm`.
    """

    def run(self):
        built = []
        start = dict(vars(self))
        with compilers_of_one_word():
            for part in start['extensions']:
                vars(self).update(start, extensions=[part])
                if self.build_part(part, super().run):
                    built.append(part)
        vars(self).update(start, extensions=built)

    def build_part(self, part, build) -> bool:
        stem = part.name.rpartition('.')[2].partition(f'_{MARK}')[0]
        folders = [Path(self.build_lib, 'kat_mm')]
        if self.inplace:
            folders.append(ROOT / 'kat_mm')
        for folder in folders:
            for old in folder.glob(f'{stem}[_.]*'):
                old.unlink()
        try:
            with output_lines() as lines:
                build()
            return True
        except Exception as failure:
            error = (
                next(filter(ERROR.search, lines), None)
                or (str(failure) or repr(failure)).splitlines()[0]
            )
        if stem == '_C_autograd':
            leave_out('the autograd nodes in C++ are', error, 'autograd')
        else:
            leave_out(f'the {stem.removeprefix("_C_").upper()} kernels are', error)
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f'{stem}.failed').write_text(error + '\n')
        return False


def command_classes() -> dict:
    try:
        from torch.utils.cpp_extension import BuildExtension
    except ImportError:
        return {'build_py': BuildWithConfigs}
    build_ext = type('build_ext', (BuildPartsApart, BuildExtension), {})
    return {'build_py': BuildWithConfigs, 'build_ext': build_ext}


setup(
    name='kat_mm',
    version=re.search(r"__version__ = '(.+)'", (ROOT / 'kat_mm/__init__.py').read_text())[1],
    description='Kolmogorov-Arnold Transformer backbones for mmdetection and mmsegmentation',
    license='Apache-2.0',
    python_requires='>=3.10, <3.14',  # as OpenMMLab's releases run on
    packages=find_packages(include=['kat_mm', 'kat_mm.*']),
    install_requires=['torch'],  # the rest is in requirements.txt: forks of it share import names
    extras_require=EXTRAS,
    ext_modules=extensions(),
    cmdclass=command_classes(),
    options={'bdist_wheel': {'py_limited_api': 'cp310'}},
)
