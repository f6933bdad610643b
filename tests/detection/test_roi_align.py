"""RoIAlign of a pyramid, against torchvision's of each level."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kat_mm.detection import multilevel_roi_align
from kat_mm.detection.roi_align_reference import (
    map_levels,
    roi_align_backward_formula,
    roi_align_formula,
)

torchvision = pytest.importorskip('torchvision')

STRIDES = (4, 8, 16, 32)
SCALES = [1 / stride for stride in STRIDES]
SIZE = (192, 320)  # of an image


def pyramid(device, dtype=torch.float32, channels=24, layout=torch.channels_last, batch=2):
    sides = [(SIZE[0] // stride, SIZE[1] // stride) for stride in STRIDES]
    return [
        torch.randn(batch, channels, *side, device=device)
        .to(dtype)
        .contiguous(memory_format=layout)
        .requires_grad_()
        for side in sides
    ]


def random_rois(device, count=60, batch=2):
    """RoIs of all sizes, some beyond the border, without extent, inside out, or padding."""
    images = torch.randint(batch, (count, 1)).float()
    centre = torch.rand(count, 2) * torch.tensor([SIZE[1], SIZE[0]])
    extent = torch.exp(torch.rand(count, 2) * 6) / 2
    rois = torch.cat([images, centre - extent, centre + extent], 1)
    rois[0, 3:] = rois[0, 1:3]
    rois[1, 1:] = rois[1, [3, 4, 1, 2]]
    rois[2, 1:] = torch.tensor([-40.0, -40, -20, -20])
    rois[3, 1:] = torch.tensor([0.0, 0, SIZE[1], SIZE[0]])
    rois[4, 1:] = torch.tensor([SIZE[1] - 4.0, SIZE[0] - 4, SIZE[1] + 40, SIZE[0] + 40])
    rois[5, 1] = rois[5, 3] + 20
    rois[6] = torch.tensor([-1.0, 10, 10, 90, 90])
    return rois.to(device)


def expected(maps, rois, levels, size, scales, ratio, aligned, grad):
    """Pools each level by torchvision; returns the features and the gradients of the maps."""
    wide = [x.detach().double().requires_grad_() for x in maps]
    features = wide[0].new_zeros(len(rois), wide[0].shape[1], *size)
    for i, x in enumerate(wide):
        chosen = (levels == i) & (rois[:, 0] >= 0)
        if ratio <= 0 and aligned:  # torchvision's CPU kernel raises where there are no samples
            chosen &= (rois[:, 3:] > rois[:, 1:3]).all(1)
        chosen = chosen.nonzero()[:, 0]
        pooled = torchvision.ops.roi_align(x.float(), rois[chosen], size, scales[i], ratio, aligned)
        features = features.index_put((chosen,), pooled.double())
    return features, torch.autograd.grad(features, wide, grad.double())


@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize('channels_last', [False, True])
@pytest.mark.parametrize(
    ('size', 'ratio', 'aligned', 'channels'),
    [((7, 7), 0, True, 24), ((14, 14), 0, True, 64), ((3, 5), 2, False, 7), ((2, 2), 1, True, 260)],
)
@pytest.mark.parametrize(
    ('dtype', 'tolerance'),
    [(torch.float32, 1e-5), (torch.bfloat16, 1e-2), (torch.float16, 1e-3)],
)
def test_equals_torchvision(
    device, layout, channels_last, size, ratio, aligned, channels, dtype, tolerance
):
    maps, rois = pyramid(device, dtype, channels, layout), random_rois(device)
    levels = map_levels(rois, 56, len(maps))
    features = multilevel_roi_align(
        maps, rois, None, size, SCALES, ratio, aligned, channels_last=channels_last
    )
    memory = torch.channels_last if channels_last else torch.contiguous_format
    assert features.dtype == dtype
    assert features.is_contiguous(memory_format=memory)
    grad = torch.randn(features.shape, device=device).to(dtype)
    grads = torch.autograd.grad(features, maps, grad)
    wanted, wanted_grads = expected(maps, rois, levels, size, SCALES, ratio, aligned, grad)
    pairs = [(features, wanted), *zip(grads, wanted_grads, strict=True)]
    for found, value in pairs:
        error = (found.double() - value).abs().max() / value.abs().max().clamp(min=1)
        assert error.item() < tolerance
    assert not features[rois[:, 0] < 0].any()
    for x, found in zip(maps, grads, strict=True):
        assert found.dtype == dtype
        assert found.stride() == x.stride()


@settings(max_examples=40, deadline=None)
@given(
    rois=st.lists(
        st.tuples(
            st.integers(-1, 1),
            *[st.floats(-60, 400, width=32) for _ in range(4)],
            st.integers(-1, 4),
        ),
        max_size=12,
    ),
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    ratio=st.integers(0, 3),
    aligned=st.booleans(),
)
def test_any_rois_and_levels(rois, size, ratio, aligned):
    maps = pyramid('cpu', channels=3)
    levels = torch.tensor([roi[-1] for roi in rois], dtype=torch.int64)
    rois = torch.tensor([roi[:-1] for roi in rois]).reshape(-1, 5)
    features = multilevel_roi_align(maps, rois, levels, size, SCALES, ratio, aligned)
    grad = torch.randn_like(features)
    grads = torch.autograd.grad(features, maps, grad)
    wanted, wanted_grads = expected(maps, rois, levels, size, SCALES, ratio, aligned, grad)
    for found, value in [(features, wanted), *zip(grads, wanted_grads, strict=True)]:
        torch.testing.assert_close(found.double(), value, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('ratio', [0, 2])
@pytest.mark.parametrize('aligned', [False, True])
def test_the_formula_equals_torchvision(ratio, aligned):
    x, rois = torch.randn(2, 3, 48, 80, dtype=torch.float64), random_rois('cpu').double()
    rois = rois[(rois[:, 0] >= 0) & (rois[:, 3:] > rois[:, 1:3]).all(1)]
    found = roi_align_formula(x, rois, 0.25, (7, 5), ratio, aligned)
    x.requires_grad_()
    wanted = torchvision.ops.roi_align(x, rois, (7, 5), 0.25, ratio, aligned)
    torch.testing.assert_close(found, wanted)
    grad = torch.randn_like(wanted)
    found = roi_align_backward_formula(grad, rois, 0.25, x.shape, ratio, aligned)
    torch.testing.assert_close(found, torch.autograd.grad(wanted, x, grad)[0])


def test_levels_are_those_of_mmdet():
    extractors = pytest.importorskip('mmdet.models.roi_heads.roi_extractors')
    layer = dict(type='RoIAlign', output_size=2)
    extractor = extractors.SingleRoIExtractor(layer, 4, list(STRIDES))
    rois = random_rois('cpu', 500)
    rois[:8, 1:] = torch.tensor([0.0, 0, 112, 112]) * torch.linspace(0.5, 4, 8)[:, None]
    wanted = extractor.map_roi_levels(rois, 4)
    assert torch.equal(map_levels(rois, 56, 4), wanted.where(wanted >= 0, -1))


@pytest.mark.gpu
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_the_gradient_has_the_same_bits_in_each_run(device, dtype):
    maps = pyramid(device, dtype, 256)
    rois = random_rois(device, 600)
    features = multilevel_roi_align(maps, rois, None, 7, SCALES)
    grad = torch.randn_like(features)
    first, second = (torch.autograd.grad(features, maps, grad, retain_graph=True) for _ in range(2))
    assert all(map(torch.equal, first, second))


@pytest.mark.gpu
def test_nothing_waits_for_the_gpu():
    if not torch.cuda.is_available():
        pytest.skip('needs a CUDA device')
    maps, rois = pyramid('cuda'), random_rois('cuda')
    features = multilevel_roi_align(maps, rois, None, 7, SCALES)
    torch.cuda.set_sync_debug_mode('error')
    try:
        features = multilevel_roi_align(maps, rois, None, 7, SCALES)
        features.sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode('default')


def test_no_rois(device):
    maps = pyramid(device)
    features = multilevel_roi_align(maps, torch.zeros(0, 5, device=device), None, 7, SCALES)
    assert features.shape == (0, 24, 7, 7)
    features.sum().backward()
    assert not any(x.grad.any() for x in maps)
    for layout in (torch.contiguous_format, torch.channels_last):
        features = multilevel_roi_align(maps, torch.zeros(0, 5, device=device), None, 7, SCALES)
        grad = torch.zeros(0, 24, 7, 7, device=device).contiguous(memory_format=layout)
        assert not any(x.any() for x in torch.autograd.grad(features, maps, grad))


def test_opcheck(device):
    maps, rois = pyramid(device, channels=4), random_rois(device, 20)
    op = torch.ops.kat_mm.multilevel_roi_align.default
    for levels in (None, torch.randint(4, (20,), device=device)):
        torch.library.opcheck(op, (maps, rois, levels, 56.0, [3, 3], SCALES, 0, True, False))
    frozen = [x.detach() for x in maps]
    torch.library.opcheck(op, (frozen, rois, None, 56.0, [3, 3], SCALES, 2, True, True))


def test_compiled_equals_eager(device):
    maps, rois = pyramid(device, channels=8), random_rois(device, 20)

    def pool(*maps):
        return multilevel_roi_align(maps, rois, None, 3, SCALES).square().sum()

    compiled = torch.compile(pool, backend='aot_eager', fullgraph=True)
    grads = [torch.autograd.grad(function(*maps), maps) for function in (pool, compiled)]
    for expected, found in zip(*grads, strict=True):
        torch.testing.assert_close(found, expected)


def test_the_second_derivative_raises(device):
    maps, rois = pyramid(device, channels=4), random_rois(device, 20)
    features = multilevel_roi_align(maps, rois, None, 3, SCALES)
    (grad, *_) = torch.autograd.grad(features.square().sum(), maps, create_graph=True)
    with pytest.raises(NotImplementedError, match='kat_mm::multilevel_roi_align_backward'):
        torch.autograd.grad(grad.sum(), maps)


@pytest.mark.parametrize(
    ('change', 'error', 'message'),
    [
        (dict(maps=[]), ValueError, 'maps must be'),
        (dict(scales=[1.0]), ValueError, 'got .* and 1 scales'),
        (dict(rois=torch.zeros(3, 4)), ValueError, r'rois must be \[K, 5\], got \(3, 4\)'),
        (dict(levels=torch.zeros(2)), ValueError, 'levels must be'),
        (
            dict(maps=[torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2, 2).half()]),
            TypeError,
            'one dtype',
        ),
    ],
)
def test_bad_arguments_are_named(change, error, message):
    arguments = dict(maps=[torch.zeros(1, 1, 4, 4)] * 2, rois=torch.zeros(1, 5), levels=None)
    arguments |= dict(output_size=2, scales=[1.0, 0.5])
    with pytest.raises(error, match=message):
        multilevel_roi_align(**arguments | change)
