"""mmcv.ops.SyncBatchNorm, `MMSyncBN`, against PyTorch's batch normalisation of the whole batch."""

from datetime import timedelta

import pytest
import torch
from mmengine.model import revert_sync_batchnorm
from torch import distributed, multiprocessing, nn

from kat_mm.openmmlab.compat import install

CHANNELS = 3


def sync_bn(**options):
    from mmcv.ops import SyncBatchNorm  # here: a new process has no ops before `install`

    return SyncBatchNorm(CHANNELS, **options)


def pair(device='cpu', **options):
    """mmcv's layer and, in fp64, PyTorch's, with the same weights."""
    layer = sync_bn(momentum=0.3, **options).to(device)
    plain = nn.BatchNorm2d(CHANNELS, momentum=0.3).double()
    torch.manual_seed(0)
    with torch.no_grad():
        for name in ('weight', 'bias', 'running_mean', 'running_var'):
            value = torch.rand(CHANNELS)
            getattr(layer, name).copy_(value)
            getattr(plain, name).copy_(value)
    return layer, plain


def check_close(own, expected, dtype=torch.float32):
    eps = {torch.float32: 1e-5, torch.float16: 2e-3}[dtype]
    torch.testing.assert_close(own.double().cpu(), expected.detach(), rtol=eps, atol=eps)


@pytest.mark.parametrize('dtype', [torch.float32, torch.float16])
@pytest.mark.parametrize('stats_mode', ['default', 'N'])
def test_one_process(device, dtype, stats_mode):
    layer, plain = pair(device, stats_mode=stats_mode)
    images = torch.randn(4, CHANNELS, 5, 2, dtype=torch.float64).mul(3).add(1).to(dtype).double()
    grad = torch.randn_like(images).to(dtype).double()
    own_images = images.to(device, dtype).requires_grad_()
    own, expected = layer(own_images), plain(images.requires_grad_())
    own.backward(grad.to(device, dtype))
    expected.backward(grad)
    assert own.dtype == dtype
    check_close(own, expected, dtype)
    check_close(own_images.grad, images.grad, dtype)
    for name in ('weight', 'bias'):
        check_close(getattr(layer, name).grad, getattr(plain, name).grad)
    for name in ('running_mean', 'running_var'):
        check_close(getattr(layer, name), getattr(plain, name))
    check_close(layer.eval()(own_images), plain.eval()(images), dtype)


def test_without_running_statistics(device):
    layer = sync_bn(track_running_stats=False).to(device).eval()
    images = torch.randn(4, CHANNELS, 5, 2, device=device)
    expected = nn.functional.batch_norm(images, None, None, layer.weight, layer.bias, True)
    torch.testing.assert_close(layer(images), expected, rtol=1e-5, atol=1e-5)


def test_where_there_is_one_process_mmengine_makes_it_batch_norm():
    layer = sync_bn()
    assert layer.group_size == 1
    assert not isinstance(revert_sync_batchnorm(layer), type(layer))


def check_two_processes(rank, device, folder):
    distributed.init_process_group(
        'gloo', f'file://{folder}/store', timedelta(minutes=1), rank=rank, world_size=2
    )
    layer, plain = pair(device)
    assert layer.group_size == 2
    images = torch.randn(4, CHANNELS, 4, 2, dtype=torch.float64)
    grad = torch.randn_like(images)
    part = slice(2 * rank, 2 * rank + 2)
    own_images = images[part].float().to(device).requires_grad_()
    own, expected = layer(own_images), plain(images.requires_grad_())
    own.backward(grad[part].float().to(device))
    expected.backward(grad)
    check_close(own, expected[part])
    check_close(own_images.grad, images.grad[part])
    for name in ('weight', 'bias'):  # mmcv returns means over the processes
        check_close(getattr(layer, name).grad * 2, getattr(plain, name).grad)
    for name in ('running_mean', 'running_var'):
        check_close(getattr(layer, name), getattr(plain, name))

    layer, plain = pair(device, stats_mode='N')
    images = images.detach()[:2]
    own = layer(images[: 0 if rank else 2].float().to(device))  # one process has no images
    check_close(own, plain(images)[: len(own)])
    distributed.barrier()  # before one of the two goes


def run_second(index, device, folder):
    install()
    check_two_processes(1, device, folder)


@pytest.mark.slow
def test_two_processes(device, tmp_path):
    second = multiprocessing.spawn(run_second, (device, str(tmp_path)), join=False)
    try:
        check_two_processes(0, device, tmp_path)
    finally:
        distributed.destroy_process_group()
        while not second.join():
            pass
