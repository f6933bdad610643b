"""The range of attention scores is logged now and then, and warned of once."""

from types import SimpleNamespace

import pytest
import torch
from mmengine.logging import MessageHub
from mmengine.registry import HOOKS

from kat_mm.attention.projections import split_heads
from kat_mm.errors import ConfigError
from kat_mm.models import KAT
from kat_mm.openmmlab.hooks import score_range
from kat_mm.openmmlab.hooks.score_range import angle_error, largest_score

ARCH = {'embed_dims': 16, 'num_layers': 2, 'num_heads': 2}


def train(model, hook, length, images=None):
    """Runs a model as a runner does; returns what was logged, by iteration."""
    hub = MessageHub('scores')
    runner = SimpleNamespace(model=model, message_hub=hub, iter=0)
    logged = {}
    images = torch.randn(2, 3, 32, 32) if images is None else images
    for i in range(length):
        runner.iter = i
        hook.before_train_iter(runner, i)
        model(images)
        hook.after_train_iter(runner, i)
        if 'train/largest_score' in hub.log_scalars:
            logged[i + 1] = len(hub.get_scalar('train/largest_score').data[0])
    return hub, logged


def karat(**options):
    torch.manual_seed(0)
    return KAT(ARCH, 32, patch=8, attention={'type': 'KArAt', **options})


def test_logs_the_largest_score_at_its_interval():
    model = karat()
    hook = HOOKS.build(dict(type='ScoreRangeHook', interval=3))
    images = torch.randn(2, 3, 32, 32)
    hub, logged = train(model, hook, 7, images)
    assert logged == {3: 1, 4: 1, 5: 1, 6: 2, 7: 2}
    x, grid = model.embed(images)
    wanted = {}
    for i, block in enumerate(model.blocks):
        q, k, _ = split_heads(block.attn.project(block.norm1(x)), 2)
        wanted[f'blocks.{i}.attn'] = (q @ k.mT).abs().max().item() / 8**0.5
        x = block(x, grid)
    found = hub.get_info('largest_scores')
    assert found == pytest.approx(wanted)
    assert hub.get_scalar('train/largest_score').current() == pytest.approx(max(wanted.values()))
    assert not any(block.attn._forward_pre_hooks for block in model.blocks)


def test_scores_of_windows_and_of_chunks(monkeypatch):
    model = karat(window_size=2, global_blocks=(1,))
    images = torch.randn(1, 3, 40, 24)
    hub, _ = train(model, HOOKS.build(dict(type='ScoreRangeHook', interval=1)), 1, images)
    x, grid = model.embed(images)
    attn = model.blocks[0].attn
    q, k, _ = split_heads(attn.project(model.blocks[0].norm1(x)), 2)
    places = torch.cartesian_prod(torch.arange(grid[0]) // 2, torch.arange(grid[1]) // 2)
    together = (places[:, None] == places[None]).all(-1)  # of one window
    scores = (q @ k.mT / 8**0.5).abs() * together
    found = hub.get_info('largest_scores')['blocks.0.attn']
    assert found == pytest.approx(scores.max().item())

    q, k = torch.randn(2, 3, 2, 9, 4)
    wanted = largest_score(q, k)
    for chunk in (1, 20, 200):
        monkeypatch.setattr(score_range, 'CHUNK', chunk)
        torch.testing.assert_close(largest_score(q, k), wanted)


def test_warns_of_a_block_once(monkeypatch):
    model, messages = karat(), []
    with torch.no_grad():
        model.blocks[1].attn.qkv.weight.mul_(3000)
    monkeypatch.setattr(score_range, 'print_log', lambda message, *_: messages.append(message))
    hub, _ = train(model, HOOKS.build(dict(type='ScoreRangeHook', interval=1, limit=0.05)), 3)
    [message] = messages
    score = hub.get_info('largest_scores')['blocks.1.attn']
    assert message.startswith(f'blocks.1.attn: attention scores reach {score:.3g}, so that in ')
    assert 'float32 the angles of its 3 frequencies are off by up to' in message
    assert 'Lower the learning rate of attn.qkv' in message


def test_an_estimate_as_rounding_is():
    """Of q and k rounded to bf16, the scores that are rounded most are off by about as much."""
    torch.manual_seed(0)
    q, k = 3 * torch.randn(2, 8, 2, 64, 32, dtype=torch.float64)
    scores = q @ k.mT / 32**0.5
    rounded = q.bfloat16().double() @ k.bfloat16().double().mT / 32**0.5
    off = (scores - rounded).abs().max().item()
    assert 0.3 < angle_error(scores.abs().max().item(), 1, torch.bfloat16) / off < 3


def test_models_without_learnable_attention_are_left_alone():
    _, logged = train(
        KAT(ARCH, 32, patch=8), HOOKS.build(dict(type='ScoreRangeHook', interval=1)), 2
    )
    assert not logged


def test_tells_once_of_attention_that_it_cannot_see(monkeypatch):
    """A replayed CUDA graph calls no module."""
    model, messages = karat(), []
    monkeypatch.setattr(score_range, 'print_log', lambda message, *_: messages.append(message))
    monkeypatch.setattr(model.blocks[1], 'forward', lambda x, *_: x)
    hub, logged = train(model, HOOKS.build(dict(type='ScoreRangeHook', interval=1)), 3)
    [message] = messages
    assert '1 attentions, such as blocks.1.attn, whose scores are not watched' in message
    assert 'take CUDAGraphHook out of custom_hooks' in message
    assert [*hub.get_info('largest_scores')] == ['blocks.0.attn']
    assert logged == {1: 1, 2: 2, 3: 3}


def test_a_graph_does_not_capture_the_look(monkeypatch):
    model, messages = karat(), []
    monkeypatch.setattr(score_range, 'print_log', lambda message, *_: messages.append(message))
    for name in ('is_initialized', 'is_current_stream_capturing'):
        monkeypatch.setattr(torch.cuda, name, lambda: True)
    _, logged = train(model, HOOKS.build(dict(type='ScoreRangeHook', interval=1)), 2)
    assert not logged
    assert len(messages) == 1


def test_errors():
    with pytest.raises(ConfigError, match='ScoreRangeHook: interval=0'):
        HOOKS.build(dict(type='ScoreRangeHook', interval=0))
