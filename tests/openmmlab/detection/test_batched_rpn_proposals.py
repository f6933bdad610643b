"""The proposals of BatchedRPNHead, against those of mmdet's RPNHead."""

import copy
import operator
import pickle

import mmdet.models  # noqa: F401, which the heads follow
import pytest
import torch
from mmengine.config import ConfigDict
from rpn_heads import PROPOSALS, batch, heads, share_choices

from kat_mm.openmmlab.detection.proposals import Proposals

NMS = PROPOSALS['nms']
SETTINGS = {
    'plain': {},
    'no choice before': dict(nms_pre=-1),
    'all before': dict(nms_pre=10**6),
    'small boxes go': dict(min_bbox_size=25),
    'all boxes go': dict(min_bbox_size=10**4),
    'no size': dict(min_bbox_size=-1),
    'few': dict(max_per_img=7),
    'none': dict(max_per_img=0),
    'many': dict(max_per_img=10**4),
    'few of nms': dict(nms=dict(NMS, max_num=9)),
    'little overlap': dict(nms=dict(NMS, iou_threshold=0.1)),
    'split': dict(nms=dict(NMS, split_thr=40)),
    # What the stock path does:
    'soft': dict(nms=dict(type='soft_nms', iou_threshold=0.3, min_score=0.3)),
    'levels together': dict(nms=dict(NMS, class_agnostic=True)),
    'offset': dict(nms=dict(NMS, offset=1)),
}
STOCK = {'soft', 'levels together', 'offset'}


def assert_equal(found, expected):
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert len(one.bboxes) == len(other.bboxes)
        assert set(one.keys()) == set(other.keys())
        torch.testing.assert_close(one.bboxes, other.bboxes, rtol=1e-5, atol=1e-4)
        torch.testing.assert_close(one.scores, other.scores, rtol=1e-5, atol=1e-6)
        assert not one.labels.any()
        assert not other.labels.any()


@pytest.mark.parametrize('name', SETTINGS)
@pytest.mark.parametrize('rescale', [False, True])
def test_equal_those_of_the_stock_head(device, name, rescale):
    stock, batched = heads(device)
    maps, samples = batch(device, counts=(1, 2, 3, 0))
    for head in (stock, batched):
        head.test_cfg = ConfigDict({**PROPOSALS, **SETTINGS[name]})
    expected = stock.predict(maps, samples, rescale=rescale)
    found = batched.predict(maps, samples, rescale=rescale)
    assert isinstance(found, Proposals) == (name not in STOCK)
    assert_equal(found, expected)
    assert any(len(each.bboxes) for each in expected) == (name not in ('none', 'all boxes go'))


@pytest.mark.parametrize(
    'changes',
    [
        dict(loss_cls=dict(type='CrossEntropyLoss', use_sigmoid=False)),
        dict(bbox_coder=dict(type='DeltaXYWHBBoxCoder', target_stds=(0.1, 0.1, 0.2, 0.2))),
        dict(bbox_coder=dict(type='DeltaXYWHBBoxCoder', clip_border=False)),
        dict(bbox_coder=dict(type='TBLRBBoxCoder', normalizer=4.0)),
    ],
)
def test_other_scores_and_boxes(device, changes):
    loss = dict(loss_bbox=dict(type='IoULoss'), reg_decoded_bbox=True)
    stock, batched = heads(device, **(loss if 'Delta' not in str(changes) else {}), **changes)
    maps, samples = batch(device)
    assert_equal(batched.predict(maps, samples), stock.predict(maps, samples))


def test_ties(device):
    """Saturated scores, among which the order of the anchors decides."""
    stock, batched = heads(device)
    for head in (stock, batched):
        head.rpn_cls.bias.data += 20
        head.rpn_reg.weight.data *= 0.1
    maps, samples = batch(device)
    found = batched.predict(maps, samples)
    assert (found.scores == 1).sum() > 50
    assert_equal(found, stock.predict(maps, samples))


def test_training_gives_losses_and_proposals(device):
    stock, batched = heads(device)
    maps, samples = batch(device)
    share_choices(stock, batched, maps, samples)
    cfg = ConfigDict(PROPOSALS, nms_pre=40)
    expected_losses, expected = stock.loss_and_predict(maps, samples, cfg)
    losses, found = batched.loss_and_predict(maps, samples, cfg)
    for name, loss in losses.items():
        torch.testing.assert_close(loss, sum(expected_losses[name]), rtol=1e-5, atol=1e-6)
    assert not found.boxes.requires_grad
    assert_equal(found, expected)


def test_methods_put_in_the_place_of_its_own_are_called():
    _, batched = heads()
    maps, samples = batch()
    batched.predict_by_feat = lambda cls_scores, *_, **options: len(cls_scores)
    assert batched.predict(maps, samples) == 3
    assert batched.loss_and_predict(maps, samples)[1] == 3
    batched.loss_by_feat = lambda *_, **options: 'losses'
    assert batched.loss(maps, samples) == 'losses'


def test_padded_tensors(device):
    _, batched = heads(device)
    maps, samples = batch(device)
    batched.test_cfg = ConfigDict(PROPOSALS, max_per_img=10**4)
    found = batched.predict(maps, samples)
    assert found.boxes.dtype == found.scores.dtype == torch.float32
    assert len(set(found.counts.tolist())) > 1
    for i, instances in enumerate(found):
        count = found.counts[i]
        assert torch.equal(found.boxes[i, :count], instances.bboxes)
        assert torch.equal(found.scores[i, :count], instances.scores)
        assert not found.boxes[i, count:].any()
        assert not found.scores[i, count:].any()


def test_instances_can_be_changed_as_those_of_a_list():
    found = Proposals(torch.rand(2, 5, 4), torch.rand(2, 5), torch.tensor([3, 0]))
    assert len(found) == 2
    found[0].priors = found[0].pop('bboxes')
    assert [len(each) for each in found] == [3, 0]
    assert 'priors' in next(iter(found))
    assert [*reversed(found)][1] is found[0]
    assert 'boxes=(2, 5, 4)' in repr(found)


def proposals():
    torch.manual_seed(0)
    return Proposals(torch.rand(2, 5, 4), torch.rand(2, 5), torch.tensor([3, 1]))


def counts(instances):
    return [len(each) for each in instances]


@pytest.mark.parametrize(
    ('read', 'wanted'),
    [
        (lambda p: operator.add(p, []), [3, 1]),
        (lambda p: operator.add([], p), [3, 1]),
        (lambda p: [*p], [3, 1]),
        (lambda p: p + proposals(), [3, 1, 3, 1]),
        (lambda p: p * 2, [3, 1, 3, 1]),
        (lambda p: 2 * p, [3, 1, 3, 1]),
        (lambda p: p.copy(), [3, 1]),
        (copy.copy, [3, 1]),
        (copy.deepcopy, [3, 1]),
        (lambda p: pickle.loads(pickle.dumps(p)), [3, 1]),
        (lambda p: [p.pop()], [1]),
        (lambda p: p[:1], [3]),
        (lambda p: sorted(p, key=len), [1, 3]),
        (lambda p: p.sort(key=len) or p, [1, 3]),
        (lambda p: p.reverse() or p, [1, 3]),
        (lambda p: p.append(p[1]) or p, [3, 1, 1]),
        (lambda p: p.insert(0, 'abcd') or p, [4, 3, 1]),
        (lambda p: p.extend(proposals()) or p, [3, 1, 3, 1]),
        (lambda p: p.__iadd__(['ab']), [3, 1, 2]),
        (lambda p: p.__delitem__(0) or p, [1]),
        (lambda p: p.clear() or p, []),
    ],
)
def test_lists_are_made_before_anything_reads_or_changes_them(read, wanted):
    assert counts(read(proposals())) == wanted


def test_an_assignment_is_kept():
    found = proposals()
    assert found.are_tensors
    found[0] = 'filtered'
    assert found[0] == 'filtered'
    assert len(found[1]) == 1
    assert not found.are_tensors
    assert found.index('filtered') == 0
    assert 'filtered' in found


def test_half_precision_outputs_lose_no_coordinates(device):
    _, batched = heads(device)
    maps, samples = batch(device)
    with torch.autocast(device, torch.bfloat16):
        found = batched.predict(maps, samples)
        cls_scores, bbox_preds = batched(maps)
    assert cls_scores[0].dtype == torch.bfloat16
    wide = [[x.float() for x in each] for each in (cls_scores, bbox_preds)]
    metas = [sample.metainfo for sample in samples]
    expected = batched.predict_by_feat(*wide, batch_img_metas=metas)
    assert torch.equal(found.boxes, expected.boxes)
    assert torch.equal(found.scores, expected.scores)
