"""Builds kat_mm and its compiled op: one binary for every CPython >= 3.10 and torch >= 2.10.

The CUDA part is built where nvcc is found, with or without a GPU. TORCH_CUDA_ARCH_LIST chooses the
GPU architectures, by default one of each generation that both this torch and this nvcc support.
What cannot be built is left out, with a line that says why: kat_mm then runs in plain PyTorch.
"""

import os
import re
import shutil
import subprocess
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
TARGET_FLAG = '-DTORCH_TARGET_VERSION=0x020a000000000000'  # the stable ABI of torch 2.10
CUDA_SOURCES = ['ops/cuda/rational.cu', 'ops/cuda/layer_norm_rational.cu']
EXTRAS = {
    'test': ['pytest', 'hypothesis', 'model-index'],
    'export': ['onnx', 'onnxscript', 'onnxruntime'],  # of backbones to ONNX
}
CXX_FLAGS = ['-O3', '-fvisibility=hidden', TARGET_FLAG]


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

    if not torch.version.cuda:
        return 'this torch has no CUDA'
    if not cuda_home:
        return 'nvcc was not found (set CUDA_HOME to a CUDA toolkit)'
    release = re.search(r'release (\d+)', nvcc_output(cuda_home, '--version'))[1]
    if release != torch.version.cuda.split('.')[0]:
        return f'nvcc is of CUDA {release} and torch of CUDA {torch.version.cuda}'
    return None


def extensions() -> list:
    """Describes the libraries to build."""
    try:
        import torch
        from torch.utils import cpp_extension
    except ImportError:
        print('kat_mm: the op is not built: torch is not installed in this environment')
        return []
    if tuple(int(part) for part in torch.__version__.split('.')[:2]) < (2, 10):
        print(f'kat_mm: the op is not built: it needs torch >= 2.10, this is {torch.__version__}')
        return []
    if not shutil.which(os.environ.get('CXX', 'c++')):
        print('kat_mm: the op is not built: no C++ compiler was found (install one or set CXX)')
        return []
    common = {'py_limited_api': True, 'extra_link_args': ['-Wl,--as-needed', '-s']}
    headers = ['ops/rational.h', 'ops/tensors.h']
    modules = [
        cpp_extension.CppExtension(
            'kat_mm._C_cpu',
            ['ops/cpu/rational.cpp'],
            depends=[*headers, 'ops/cpu/convert.h'],
            extra_compile_args={'cxx': CXX_FLAGS},
            **common,
        )
    ]
    reason = why_not_cuda(cpp_extension.CUDA_HOME)
    if reason:
        print(f'kat_mm: the CUDA kernels are not built: {reason}')
        return modules
    if 'TORCH_CUDA_ARCH_LIST' not in os.environ:
        os.environ['TORCH_CUDA_ARCH_LIST'] = cuda_arch_list(cpp_extension.CUDA_HOME)
    modules.append(
        cpp_extension.CUDAExtension(
            'kat_mm._C_cuda',
            CUDA_SOURCES,
            library_dirs=cuda_library_dirs(cpp_extension.CUDA_HOME),
            depends=[*headers, 'ops/cuda/launch.cuh', 'ops/cuda/reduce.cuh'],
            extra_compile_args={
                'cxx': [*CXX_FLAGS, '-DUSE_CUDA'],
                # Several architectures are compiled at a time, one for each core.
                'nvcc': ['-O3', '--threads=0', '-DUSE_CUDA', TARGET_FLAG],
            },
            **common,
        )
    )
    return modules


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


def command_classes() -> dict:
    try:
        from torch.utils.cpp_extension import BuildExtension
    except ImportError:
        return {'build_py': BuildWithConfigs}
    return {'build_py': BuildWithConfigs, 'build_ext': BuildExtension}


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
