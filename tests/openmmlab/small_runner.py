"""A run of mmengine's Runner that takes a fraction of a second."""

import random
from itertools import count

import numpy as np
import torch
from mmengine.dataset import BaseDataset
from mmengine.evaluator import BaseMetric, Evaluator
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.runner import Runner

_number = count()


class RandomNumbers(BaseDataset):
    """Eight samples, each drawn anew from all the generators that augmentations may use."""

    def load_data_list(self):
        return [{}] * 8

    def __getitem__(self, index):
        return self.load(index)

    def load(self, index):
        draws = [random.random(), np.random.rand(), torch.rand(()).item()]  # noqa: NPY002
        return {'inputs': torch.tensor([index, *draws])}


class DropoutModel(BaseModel):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(4, 1)
        self.factor = 1.0  # a test makes it NaN

    def forward(self, inputs, data_samples=None, mode='tensor'):
        inputs = torch.nn.functional.dropout(torch.stack(inputs), 0.5, self.training)
        output = self.factor * self.linear(inputs)
        if mode == 'predict':
            return list(output)
        return {'loss_a': output.mean(), 'loss_b': output.square().mean()}


class Rising(BaseMetric):
    """A score that rises with each evaluation, so that each checkpoint is the best."""

    score = 0

    def process(self, data_batch, data_samples):
        self.results.append(0)

    def compute_metrics(self, results):
        self.score += 1
        return {'score': self.score}


class Losses(Hook):
    """Keeps the loss of every iteration."""

    def __init__(self):
        self.values = {}

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.values[runner.iter + 1] = outputs['loss'].item()


def small_runner(
    work_dir,
    *,
    length=2,
    by_epoch=True,
    workers=0,
    hooks=(),
    checkpoint=None,
    seed=1,
    sampler=None,
    accumulative_counts=1,
    **kwargs,
):
    """Returns a runner of `length` epochs of four iterations, or of `length` iterations."""

    def loader(workers):
        kind = sampler or ('DefaultSampler' if by_epoch else 'InfiniteSampler')
        return {
            'batch_size': 2,
            'num_workers': workers,
            'persistent_workers': workers > 0,
            'dataset': RandomNumbers(),
            'sampler': {'type': kind, 'shuffle': True},
        }

    validation = loader(0)
    validation['sampler'] = {'type': 'DefaultSampler', 'shuffle': False}
    torch.manual_seed(0)
    return Runner(
        DropoutModel(),
        work_dir=str(work_dir),
        experiment_name=f'small_{next(_number)}',
        train_dataloader=loader(workers),
        train_cfg=(
            {'by_epoch': True, 'max_epochs': length}
            if by_epoch
            else {'by_epoch': False, 'max_iters': length, 'val_interval': 3}
        ),
        val_dataloader=validation,
        val_cfg={},
        val_evaluator=Evaluator([Rising(prefix='rising')]),
        optim_wrapper={
            'optimizer': {'type': 'SGD', 'lr': 0.01, 'momentum': 0.9},
            'accumulative_counts': accumulative_counts,
        },
        default_hooks={
            'checkpoint': {
                'type': 'SafeCheckpointHook',
                'by_epoch': by_epoch,
                'interval': 1,
                **(checkpoint or {}),
            },
            'logger': {
                'type': 'LoggerHook',
                'interval': 1,
                'log_metric_by_epoch': by_epoch,
            },
        },
        log_processor={'type': 'MemoryLogProcessor', 'by_epoch': by_epoch},
        custom_hooks=list(hooks),
        randomness={'seed': seed},
        log_level='ERROR',
        **kwargs,
    )
