"""tools/swap_backbone.py, from a name to a config that trains."""

from mmengine.config import Config
from tool_runs import ROOT


def test_a_shipped_config(run_tool, tmp_path):
    name = 'mmseg::segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512'
    out = tmp_path / 'segformer.py'
    run = run_tool(tmp_path, 'swap_backbone.py', name, '--arch', 'tiny', '-o', out).ended_well()
    assert "model.backbone: dict(type='MixVisionTransformer', " in run.stdout
    assert '    maps of the channels and strides of those of MixVisionTransformer' in run.stdout
    assert f'train it with: python tools/train.py {out}' in run.stdout
    assert Config.fromfile(out).model.backbone.arch == 'tiny'
    # Nothing is missing for training but the data.
    error = run_tool(tmp_path, 'train.py', out).error()
    assert error.startswith("data set not found in 'data/ade/ADEChallengeData2016'")
    again = run_tool(tmp_path, 'swap_backbone.py', out, '-o', tmp_path / 'again.py')
    assert again.error() == 'model.backbone is KAT already'


def test_what_the_user_can_mend(run_tool, tmp_path):
    def error(*arguments):
        return run_tool(ROOT, 'swap_backbone.py', *arguments).error()

    assert error('mmdet::detr/detr_r50_8xb2_150e_coco').startswith(
        'config mmdet::detr/detr_r50_8xb2_150e_coco does not exist; did you mean '
        'mmdet::detr/detr_r50_8xb2-150e_coco.py or '
    )
    name = 'mmseg::unet/unet-s5-d16_fcn_4xb4-160k_cityscapes-512x1024'
    assert 'the backbone UNet gives maps at strides (16, 8, 4, 2, 1)' in error(name)
    assert error(name, '--checkpoint', 'kat.pth') == 'checkpoint kat.pth does not exist'
