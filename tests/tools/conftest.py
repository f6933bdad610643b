import json
import subprocess
import sys
from pathlib import Path

import pytest
from mmengine.config import Config
from tool_runs import DETECTION, ENVIRONMENT, ROOT, SEGMENTATION, TOOLS, TRAIN, VAL, Run, run_alone

import kat_mm.openmmlab  # noqa: F401, brings mmcv's ops
from kat_mm.digits.scenes import SceneSpec
from kat_mm.digits.writer import write_dataset


@pytest.fixture(scope='session')
def server():
    path = Path(__file__).with_name('tool_server.py')
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with subprocess.Popen([sys.executable, path], env=ENVIRONMENT, **pipes) as process:
        yield process
        process.stdin.close()


@pytest.fixture(scope='session')
def run_tool(server, tmp_path_factory):
    """Runs a tool: run_tool(cwd, 'train.py', *arguments, VARIABLE=value)."""

    def run(cwd, tool, *arguments, **env) -> Run:
        output = [tmp_path_factory.mktemp('output') / name for name in ('out', 'err')]
        for path in output:
            path.touch()
        argv = [str(TOOLS / tool), *map(str, arguments)]
        job = dict(cwd=str(cwd), argv=argv, env=env, output=list(map(str, output)))
        server.stdin.write(json.dumps(job) + '\n')
        server.stdin.flush()
        return Run(int(server.stdout.readline()), *(path.read_text() for path in output))

    return run


@pytest.fixture(scope='session')
def data(tmp_path_factory):
    """A small data set on disk; tests only read it."""
    root = tmp_path_factory.mktemp('data') / 'digit_scenes'
    write_dataset(root, SceneSpec((64, 64), min_digits=1, max_digits=3), TRAIN, VAL)
    return root


@pytest.fixture(scope='session')
def detection_config(data, tmp_path_factory):
    """A Mask R-CNN that trains for three epochs of three iterations, with random augmentation."""
    path = tmp_path_factory.mktemp('configs') / 'detection.py'
    base = str(ROOT / 'configs' / 'kat_maskrcnn_digits.py')
    path.write_text(DETECTION.format(base=base, data_root=f'{data}/'))
    return path


@pytest.fixture(scope='session')
def flat_config(detection_config):
    """The same training in a config without a base, which is read in no time."""
    path = detection_config.with_name('flat.py')
    settings = Config.fromfile(detection_config).to_dict()
    path.write_text(''.join(f'{name} = {value!r}\n' for name, value in settings.items()))
    return path


@pytest.fixture(scope='session')
def breaking_config(detection_config):
    """The same training, which KILL_AT and NAN_AT in the environment break at an iteration."""
    path = detection_config.with_name('breaking.py')
    path.write_text(
        "_base_ = './detection.py'\n"
        "custom_imports = dict(imports=['breaking_hooks', *_base_.custom_imports.imports])\n"
        "custom_hooks = [*_base_.custom_hooks, dict(type='KillHook'), dict(type='NaNWeightHook')]\n"
    )
    return path


@pytest.fixture(scope='session')
def segmentation_config(data, tmp_path_factory):
    """A segmentor that trains for two iterations."""
    path = tmp_path_factory.mktemp('configs') / 'segmentation.py'
    base = str(ROOT / 'configs' / '_base_' / 'digit_scenes_semantic.py')
    path.write_text(SEGMENTATION.format(base=base, data_root=f'{data}/'))
    return path


@pytest.fixture(scope='session')
def trained(detection_config, tmp_path_factory):
    """An uninterrupted training run: (run, work dir)."""
    work_dir = tmp_path_factory.mktemp('trained')
    run = run_alone(
        work_dir, TOOLS / 'train.py', detection_config, '--work-dir', work_dir / 'detection'
    )
    return run.ended_well(), work_dir / 'detection'
