"""Small configs, and runs of the command-line tools with them."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
TOOLS = ROOT / 'tools'
TRAIN, VAL = 12, 4  # images
# With the hooks that break a run, which stand next to this file.
PATHS = os.pathsep.join(map(str, (ROOT, Path(__file__).parent)))
ENVIRONMENT = {**os.environ, 'PYTHONPATH': PATHS, 'OMP_NUM_THREADS': '1'}

DETECTION = """
_base_ = {base!r}
data_root = {data_root!r}
train_pipeline = [
    dict(type='LoadCheckedImage'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='RandomResize', scale=(64, 64), ratio_range=(0.8, 1.2), keep_ratio=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs'),
]
model = dict(
    backbone=dict(
        arch=dict(embed_dims=32, num_layers=2, num_heads=2), img_size=64, drop_path_rate=0.2
    ),
    neck=dict(in_channels=32, out_channels=16),
    rpn_head=dict(in_channels=16, feat_channels=16),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=16),
        bbox_head=dict(in_channels=16, fc_out_channels=32),
        mask_roi_extractor=dict(out_channels=16),
        mask_head=dict(in_channels=16, conv_out_channels=16, num_convs=1),
    ),
    train_cfg=dict(rpn_proposal=dict(nms_pre=50, max_per_img=20), rcnn=dict(sampler=dict(num=16))),
    test_cfg=dict(
        rpn=dict(nms_pre=50, max_per_img=20), rcnn=dict(max_per_img=5, score_thr=0.0)
    ),
)
train_dataloader = dict(
    batch_size=4, num_workers=2, dataset=dict(data_root=data_root, pipeline=train_pipeline)
)
val_dataloader = dict(num_workers=0, persistent_workers=False, dataset=dict(data_root=data_root))
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + 'annotations/val.json')
test_evaluator = val_evaluator
train_cfg = dict(max_epochs=3, val_interval=3)
default_hooks = dict(logger=dict(interval=1), visualization=dict(score_thr=0.0))
"""

SEGMENTATION = """
_base_ = [{base!r}, 'mmseg::_base_/default_runtime.py']
data_root = {data_root!r}
train_dataloader = dict(batch_size=4, num_workers=0, persistent_workers=False,
                        dataset=dict(data_root=data_root))
val_dataloader = dict(num_workers=0, persistent_workers=False, dataset=dict(data_root=data_root))
test_dataloader = val_dataloader
test_evaluator = [dict(type='IoUMetric', iou_metrics=['mIoU'])]
model = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(
        type='SegDataPreProcessor', mean=[127.5] * 3, std=[50.0] * 3, size=(128, 128)
    ),
    backbone=dict(type='KAT', arch=dict(embed_dims=32, num_layers=1, num_heads=2), img_size=128),
    decode_head=dict(
        type='FCNHead', in_channels=32, channels=16, num_convs=1, num_classes=11, in_index=-1,
        loss_decode=dict(type='CrossEntropyLoss'),
    ),
    test_cfg=dict(mode='whole'),
)
custom_imports = dict(imports=['kat_mm.openmmlab'])
default_hooks = dict(
    logger=dict(type='LoggerHook', interval=1, log_metric_by_epoch=False),
    checkpoint=dict(type='SafeCheckpointHook', by_epoch=False, interval=2),
    visualization=dict(type='SegVisualizationHook'),
)
custom_hooks = [dict(type='EpochSeedHook'), dict(type='FiniteLossHook')]
log_processor = dict(type='MemoryLogProcessor')
randomness = dict(seed=0)
train_cfg = dict(type='IterBasedTrainLoop', max_iters=2, val_interval=2)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
optim_wrapper = dict(
    type='OptimWrapper', constructor='KATOptimWrapperConstructor',
    optimizer=dict(type='AdamW', lr=1e-3),
)
param_scheduler = [dict(type='PolyLR', power=1.0, begin=0, end=2, by_epoch=False)]
tta_model = dict(type='SegTTAModel')
tta_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(
        type='TestTimeAug',
        transforms=[
            [dict(type='Resize', scale=(128, 128), keep_ratio=True)],
            [dict(type='RandomFlip', prob=0.0), dict(type='RandomFlip', prob=1.0)],
            [dict(type='LoadAnnotations')],
            [dict(type='PackSegInputs')],
        ],
    ),
]
"""


@dataclass
class Run:
    """A finished run of a tool."""

    status: int
    stdout: str
    stderr: str

    def ended_well(self) -> 'Run':
        assert self.status == 0, self.stdout[-2000:] + self.stderr[-4000:]
        assert 'Traceback' not in self.stderr
        return self

    def error(self) -> str:
        """Returns the one line in which the tool reported what the user can mend."""
        assert self.status == 1, (self.status, self.stderr[-4000:])
        assert 'Traceback' not in self.stdout + self.stderr
        # OpenCV warns when it likes, in workers that load ahead too.
        told = [line for line in self.stderr.splitlines() if not line.startswith('[ WARN:')]
        lines = [line for line in told if line.startswith('error: ')]
        assert len(lines) == 1, self.stderr
        assert told[-1] == lines[0], self.stderr
        return lines[0].removeprefix('error: ')


def run_alone(cwd, *argv, **env) -> Run:
    """Runs Python from the start, as a user does."""
    done = subprocess.run(
        [sys.executable, *map(str, argv)],
        cwd=cwd,
        env={**ENVIRONMENT, **env},
        capture_output=True,
        text=True,
        timeout=180,
    )
    return Run(done.returncode, done.stdout, done.stderr)
