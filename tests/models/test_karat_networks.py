"""Networks of Kolmogorov-Arnold attention: how they train, compile, spread and are exported."""

import pytest
import torch
from torch import distributed, multiprocessing
from torch.nn.parallel import DistributedDataParallel

from kat_mm.models import KAT
from kat_mm.models.export import export_backbone, run, save

ARCH = {'embed_dims': 16, 'num_layers': 3, 'num_heads': 2}
GLOBAL = dict(type='KArAt', rank=4)
UNIVERSAL = dict(GLOBAL, shared='operator')
WINDOWS = dict(GLOBAL, window_size=3, global_blocks=(1,))
ATTENTIONS = {
    'blockwise': GLOBAL,
    'universal': UNIVERSAL,
    'gated': dict(UNIVERSAL, base='softmax'),
    'windows': WINDOWS,
    'windows and softmax': dict(WINDOWS, base='softmax', global_attention='softmax'),
    'rational functions': dict(UNIVERSAL, basis='rational', form='phi_phi'),
    'on the simplex': dict(GLOBAL, simplex=True),
}
every_attention = pytest.mark.parametrize('attention', ATTENTIONS.values(), ids=ATTENTIONS)


def network(attention, **kwargs):
    torch.manual_seed(0)
    model = KAT(ARCH, 40, 8, attention, **kwargs)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith('gate'):
                parameter.fill_(0.5)
    return model


def outputs_and_gradients(call, model, images):
    model.zero_grad()
    [y] = call(images)
    y.square().mean().backward()
    return [y.detach(), *(p.grad.clone() for p in model.parameters())]


def check_equal(found, expected, **tolerance):
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, **tolerance)


@every_attention
@pytest.mark.parametrize('ffn', ['mlp', 'gr_kan'])
def test_every_parameter_learns_with_either_feed_forward_layer(attention, ffn):
    model = network(attention, ffn=ffn)
    _, *gradients = outputs_and_gradients(model, model, torch.randn(2, 3, 40, 40))
    assert all(gradient.isfinite().all() and gradient.any() for gradient in gradients)


@every_attention
def test_gradient_checkpointing_changes_nothing(attention):
    images = torch.randn(2, 3, 40, 40)
    plain, kept = (network(attention, with_cp=with_cp) for with_cp in (False, True))
    assert kept.with_cp
    check_equal(
        outputs_and_gradients(kept, kept, images), outputs_and_gradients(plain, plain, images)
    )


@pytest.mark.slow
@pytest.mark.parametrize('name', ['gated', 'windows', 'rational functions'])
def test_torch_compile_takes_the_whole_backbone(name):
    model, images = network(ATTENTIONS[name]), torch.randn(2, 3, 40, 40)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend='aot_eager')
    check_equal(
        outputs_and_gradients(compiled, model, images), outputs_and_gradients(model, model, images)
    )


@pytest.mark.slow
def test_compiled_code_computes_the_same():
    model, images = network(ATTENTIONS['gated']).double(), torch.randn(2, 3, 40, 40).double()
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True)
    check_equal(
        outputs_and_gradients(compiled, model, images), outputs_and_gradients(model, model, images)
    )


def train_on_a_share(rank, folder):
    torch.set_num_threads(1)
    distributed.init_process_group(
        'gloo', init_method=f'file://{folder}/store', rank=rank, world_size=2
    )
    for name, attention in ATTENTIONS.items():
        model = network(attention)
        parallel = DistributedDataParallel(model)
        images = torch.load(f'{folder}/images.pt')[2 * rank : 2 * rank + 2]
        for _ in range(2):  # a parameter without a gradient shows at the second forward
            found = outputs_and_gradients(parallel, model, images)[1:]
        if rank == 0:
            torch.save(found, f'{folder}/{name}.pt')
    distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_find_the_gradients_of_the_joined_batch(tmp_path):
    images = torch.randn(4, 3, 40, 40)
    torch.save(images, tmp_path / 'images.pt')
    multiprocessing.spawn(train_on_a_share, (str(tmp_path),), nprocs=2)
    for name, attention in ATTENTIONS.items():
        model = network(attention)
        expected = outputs_and_gradients(model, model, images)[1:]
        check_equal(torch.load(tmp_path / f'{name}.pt'), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    ('kind', 'name'),
    [
        *(('pt2', 'gated'), ('pt2', 'windows')),
        *(('onnx', 'windows'), ('onnx', 'rational functions'), ('onnx', 'on the simplex')),
    ],
)
def test_export_for_any_batch_and_any_size(kind, name, tmp_path):
    if kind == 'onnx':
        pytest.importorskip('onnxscript')
        pytest.importorskip('onnxruntime')
    model, path = network(ATTENTIONS[name]).eval(), tmp_path / f'kat.{kind}'
    save(export_backbone(model, torch.zeros(1, 3, 40, 40), True, True), path, kind)
    for size in [(1, 3, 40, 40), (5, 3, 43, 61)]:
        images = torch.randn(size)
        with torch.no_grad():
            results, expected = run(path, kind, images), model(images)
        torch.testing.assert_close(results, list(expected), rtol=1e-3, atol=1e-4)


def test_exported_twice_it_is_the_same_program():
    model, images = network(ATTENTIONS['gated']).eval(), torch.randn(2, 3, 40, 40)
    one, other = (export_backbone(model, images) for _ in range(2))
    assert str(one.graph) == str(other.graph)
    with torch.no_grad():
        [found], [expected] = one.module()(images), model(images)
    assert torch.equal(found, expected)


def test_autocast_leaves_the_operator_alone():
    operator = network(GLOBAL).blocks[0].attn.operator
    q, k, v = torch.randn(3, 1, 2, 26, 8)
    with torch.no_grad(), torch.autocast('cpu', torch.bfloat16):
        found = operator(q, k, v, (5, 5))
    assert torch.equal(found, operator(q, k, v, (5, 5)))
