"""Builds kat_mm and its compiled op: one binary for every CPython >= 3.10 and torch >= 2.10.

The CUDA part is built where nvcc is found, with or without a GPU. TORCH_CUDA_ARCH_LIST chooses the
GPU architectures, by default all those that both this torch and this nvcc support.
"""

import os
import re
import subprocess
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent
TARGET_TORCH = '0x020a000000000000'  # the stable ABI of torch 2.10
CXX_FLAGS = ['-O3', '-fvisibility=hidden', f'-DTORCH_TARGET_VERSION={TARGET_TORCH}']


def cuda_arch_list(cuda_home: str) -> str:
    """Returns the architectures known to both torch and nvcc, the newest also as PTX."""
    import torch

    listing = subprocess.check_output([f'{cuda_home}/bin/nvcc', '--list-gpu-arch'], text=True)
    nvcc = {int(number) for number in re.findall(r'compute_(\d+)', listing)}
    flags = torch._C._cuda_getArchFlags() or ''
    archs = sorted(nvcc & {int(number) for number in re.findall(r'sm_(\d+)', flags)})
    names = [f'{arch // 10}.{arch % 10}' for arch in archs or [min(nvcc)]]
    return ';'.join(names) + '+PTX'


def extensions() -> list:
    """Describes the libraries to build; none without a torch that has the stable ABI."""
    try:
        import torch
        from torch.utils import cpp_extension
    except ImportError:
        return []
    if tuple(int(part) for part in torch.__version__.split('.')[:2]) < (2, 10):
        return []
    common = {'py_limited_api': True, 'extra_link_args': ['-Wl,--as-needed', '-s']}
    headers = ['ops/rational.h', 'ops/tensors.h']
    modules = [
        cpp_extension.CppExtension(
            'kat_mm._C_cpu',
            ['ops/cpu/rational.cpp'],
            depends=headers,
            extra_compile_args={'cxx': CXX_FLAGS},
            **common,
        )
    ]
    if cpp_extension.CUDA_HOME and torch.version.cuda:
        if 'TORCH_CUDA_ARCH_LIST' not in os.environ:
            os.environ['TORCH_CUDA_ARCH_LIST'] = cuda_arch_list(cpp_extension.CUDA_HOME)
        modules.append(
            cpp_extension.CUDAExtension(
                'kat_mm._C_cuda',
                ['ops/cuda/rational.cu'],
                depends=headers,
                extra_compile_args={
                    'cxx': [*CXX_FLAGS, '-DUSE_CUDA'],
                    'nvcc': ['-O3', '-DUSE_CUDA', f'-DTORCH_TARGET_VERSION={TARGET_TORCH}'],
                },
                **common,
            )
        )
    return modules


def command_classes() -> dict:
    try:
        from torch.utils.cpp_extension import BuildExtension
    except ImportError:
        return {}
    return {'build_ext': BuildExtension}


setup(
    name='kat_mm',
    version=re.search(r"__version__ = '(.+)'", (ROOT / 'kat_mm/__init__.py').read_text())[1],
    description='Kolmogorov-Arnold Transformer backbones for mmdetection and mmsegmentation',
    license='Apache-2.0',
    python_requires='>=3.10',
    packages=find_packages(include=['kat_mm', 'kat_mm.*']),
    install_requires=['torch'],
    ext_modules=extensions(),
    cmdclass=command_classes(),
    options={'bdist_wheel': {'py_limited_api': 'cp310'}},
)
