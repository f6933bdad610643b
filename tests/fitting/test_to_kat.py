"""`to_kat` on single MLPs: what it keeps, what it leaves, and what it says."""

import pickle
import re
from copy import deepcopy
from functools import partial

import pytest
import timm.layers
import torch
from mlps import chain, mlp
from mmcv.cnn.bricks.transformer import FFN
from mmengine.runner.checkpoint import load_state_dict as mmengine_load
from timm.models.mlp_mixer import SpatialGatingUnit
from torch import nn

import kat_mm
from kat_mm.models import GRKAN
from kat_mm.rational import GroupRational


def test_computes_the_gr_kan_layer():
    model = mlp(bias=False)
    assert kat_mm.to_kat(model)
    layer = GRKAN(16, 32, act_init=('identity', 'gelu'))
    keys = {key.replace('fc1.layer.', 'fc1.'): value for key, value in model.state_dict().items()}
    layer.load_state_dict(keys, strict=False)
    nn.init.zeros_(layer.fc1.bias)
    for ours, theirs in ((layer.act1, model.fc1.act1), (layer.act2, model.act)):
        for parameter in ours.parameters():
            nn.init.normal_(parameter)
        theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 5, 16)
    torch.testing.assert_close(model(x), layer(x))


def test_keys():
    model = nn.ModuleDict({'mlp': mlp()})
    before = model.state_dict()
    kat_mm.to_kat(model)
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    assert {key: shape for key, shape in shapes.items() if key not in before} == {
        'mlp.fc1.layer.weight': (32, 16),
        'mlp.fc1.layer.bias': (32,),
        'mlp.fc1.act1.weight_numerator': (6,),
        'mlp.fc1.act1.weight_denominator': (32,),
        'mlp.act.weight_numerator': (6,),
        'mlp.act.weight_denominator': (32,),
    }
    assert dict(model.named_parameters()).keys() == shapes.keys()


@pytest.mark.parametrize('load', [nn.Module.load_state_dict, mmengine_load])
def test_checkpoints_of_before_load(load):
    """Those of the model itself, and those in which act1 was a child of the linear layer."""
    source, model = nn.Sequential(mlp()), nn.Sequential(mlp())
    plain = source.state_dict()
    kat_mm.to_kat(source)
    kat_mm.to_kat(model)
    nn.init.normal_(source[0].fc1.act1.weight_numerator)
    earlier = {k.replace('.layer.', '.'): v for k, v in source.state_dict().items()}
    assert plain.keys() < earlier.keys()
    load(model, earlier, strict=True)
    for key, value in model.state_dict().items():
        assert torch.equal(value, source.state_dict()[key]), key
    nn.init.zeros_(model[0].fc1.layer.weight)
    load(model, plain, strict=False)
    assert torch.equal(model[0].fc1.layer.weight, plain['0.fc1.weight'])


def test_the_report():
    model = nn.Sequential(mlp(), mlp(nn.ReLU), mlp(nn.PReLU))
    report = kat_mm.to_kat(model)
    first, second = report.converted
    assert (first.name, first.kind, first.channels) == ('0', 'Mlp', (16, 32, 16))
    assert (first.activation, second.activation) == ('GELU', 'ReLU')
    assert first.interval == second.interval == (-6, 6)
    assert first.rms is None
    assert first.error == pytest.approx(0.0031, abs=5e-5)
    assert second.error == pytest.approx(0.0255, abs=5e-4)
    text = str(report).splitlines()
    assert text[0] == 'Converted into GR-KAN layers: 2'
    assert text[1].split() == ['channels', 'activation', 'fitted', 'on', 'largest', 'error']
    assert text[2].split() == ['0', 'Mlp', '16-32-16', 'GELU', '[-6,', '6]', '3.1e-03']
    assert text[4] == 'Left as they were: 1'
    assert 'PReLU' in text[5]


class ByKeyword(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.act, self.fc2 = nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16)

    def forward(self, tokens):
        return self.fc2(input=self.act(input=self.fc1(input=tokens)))


class ByWeight(ByKeyword):
    def forward(self, x):
        return self.fc2(self.act(nn.functional.linear(x, self.fc1.weight, self.fc1.bias)))


class ByWeightToo(ByKeyword):
    def forward(self, x):
        return super().forward(x) + 0 * self.fc1.weight.sum()


def samples_or_none(model, with_samples):
    return kat_mm.to_kat(model, samples=torch.randn(5, 16) if with_samples else None)


@pytest.mark.parametrize('with_samples', [False, True])
def test_calls_by_keyword_run_both_activations(with_samples):
    model = ByKeyword()
    (entry,) = samples_or_none(model, with_samples).converted
    assert entry.ran
    x = torch.randn(3, 16)
    want = model(x)
    nn.init.zeros_(model.fc1.act1.weight_numerator)
    assert not torch.equal(model(x), want)


@pytest.mark.parametrize('with_samples', [False, True])
def test_an_mlp_whose_code_reads_the_weight_is_left(with_samples):
    model = nn.Sequential(ByWeight())
    before = str(model)
    report = samples_or_none(model, with_samples)
    assert not report.converted
    assert "'weight' of a layer" in str(report) or 'is not called' in str(report)
    assert str(model) == before


def test_an_mlp_that_also_reads_the_weight():
    report = kat_mm.to_kat(model := nn.Sequential(ByWeightToo()))
    assert 'it does not run so: ' in report.left[0].reason
    before = str(model)
    with pytest.raises(
        AttributeError, match=r'would skip that\. Call the layer, or read layer\.wei'
    ):
        kat_mm.to_kat(model, samples=torch.randn(5, 16))
    assert str(model) == before


class TwoArguments(ByKeyword):
    def forward(self, x, scale):
        return super().forward(x) * scale


def test_what_did_not_run_is_named():
    report = kat_mm.to_kat(nn.Sequential(mlp(), TwoArguments()))
    assert [entry.ran for entry in report.converted] == [True, False]
    assert 'nothing shows whether both activations are called: 1' in str(report)
    report = kat_mm.to_kat(TwoArguments(), samples=(torch.randn(5, 16), 2.0))
    assert report.converted[0].ran
    assert 'Not run' not in str(report)


def test_attributes_of_the_layer():
    model = mlp()
    kat_mm.to_kat(model)
    assert (model.fc1.in_features, model.fc1.out_features) == (16, 32)
    assert not hasattr(model.fc1, 'weight')
    assert not hasattr(model.fc1, 'wait')


@pytest.mark.parametrize('twin', [lambda m: m, deepcopy])
def test_is_traced_by_fx(twin):
    model, x = mlp(), torch.randn(2, 5, 16)
    kat_mm.to_kat(model)
    assert torch.equal(twin(torch.fx.symbolic_trace(model))(x), model(x))


def test_a_second_conversion_changes_nothing():
    model = nn.Sequential(mlp(), mlp())
    kat_mm.to_kat(model)
    keys = model.state_dict().keys()
    report = kat_mm.to_kat(model)
    assert not report.converted
    assert 'Nothing left to convert' in str(report)
    assert model.state_dict().keys() == keys


def test_nothing_to_convert():
    report = kat_mm.to_kat(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3)))
    assert not report.converted
    assert not report.left
    assert str(report) == 'Converted into GR-KAN layers: none'


class Log(nn.Module):
    def forward(self, x):
        return x.log()


class MapsBetween(nn.Module):
    """An MLP of tokens whose hidden channels pass a convolution as maps."""

    def __init__(self):
        super().__init__()
        self.fc1, self.conv = nn.Linear(16, 32), nn.Conv2d(32, 32, 3, groups=32)
        self.act, self.fc2 = nn.GELU(), nn.Linear(32, 16)


def sharing():
    first, second = mlp(), mlp()
    second.fc1 = first.fc1
    return nn.Sequential(first, second)


GATE = partial(SpatialGatingUnit, seq_len=9)
LEFT = {
    'GluMlp': (timm.layers.GluMlp(16, 64), 'gated'),
    'SwiGLU': (timm.layers.SwiGLU(16, 32), 'gated'),
    'gMLP': (
        timm.layers.GatedMlp(16, 64, gate_layer=partial(SpatialGatingUnit, seq_len=9)),
        'gated',
    ),
    'parameters': (mlp(nn.PReLU), 'its activation, PReLU, has parameters of its own'),
    'not finite': (mlp(Log), 'can be fitted to its activation: .* not finite at -6'),
    'input channels': (mlp(inputs=12), 'num_groups=8 does not divide its 12 channels'),
    'hidden channels': (mlp(hidden=36), 'num_groups=8 does not divide its 36 channels'),
    'three layers': (chain(16, 32, 32, 16), 'two linear layers .* this one 3 and 2'),
    'maps between': (MapsBetween(), 'linear layers and convolutions'),
    'shared layer': (sharing(), 'shared with another module'),
    'function': (nn.TransformerEncoderLayer(16, 2, 32), 'a function, relu'),
    'GR-KAN': (GRKAN(16), 'rational already'),
}


@pytest.mark.parametrize(('model', 'reason'), LEFT.values(), ids=LEFT)
def test_what_is_left_and_why(model, reason):
    model, before = deepcopy(model), model
    report = kat_mm.to_kat(model)
    assert not report.converted
    assert report.left
    assert all(re.search(reason, left.reason) for left in report.left)
    assert str(model) == str(before)


def test_a_module_in_two_places_is_converted_once():
    shared = mlp()
    model = nn.Sequential(shared, nn.LayerNorm(16), shared)
    report = kat_mm.to_kat(model)
    assert [entry.name for entry in report.converted] == ['0']
    assert model[0] is model[2]
    assert len([m for m in model.modules() if isinstance(m, GroupRational)]) == 2


def test_the_name_is_that_of_the_mlp_and_not_of_its_parts_or_its_block():
    block = nn.ModuleDict({'norm': nn.LayerNorm(16), 'mlp': mlp(), 'drop': nn.Dropout()})
    assert kat_mm.to_kat(block).converted[0].name == 'mlp'
    block = nn.ModuleDict({'ffn': FFN(16, 32), 'drop': nn.Dropout()})
    assert kat_mm.to_kat(block).converted[0].name == 'ffn'
    assert kat_mm.to_kat(block).left[0].name == 'ffn'
    block = nn.ModuleDict({'attention': nn.Linear(16, 16), 'mlp': chain(16, 32, 16)})
    assert kat_mm.to_kat(block).converted[0].name == 'mlp'


def test_one_activation_of_several_mlps_becomes_one_each():
    act = nn.GELU()
    model = nn.Sequential(*(chain(16, 32, 16, act=lambda: act) for _ in range(2)))
    assert len(kat_mm.to_kat(model).converted) == 2
    assert model[0][1] is not model[1][1]


def test_dtype_grad_and_mode_are_kept():
    model = nn.Sequential(mlp(drop=0.5), mlp()).to(torch.bfloat16)
    model[0].requires_grad_(False).eval()
    kat_mm.to_kat(model)
    for i, on in enumerate((False, True)):
        acts = [m for m in model[i].modules() if isinstance(m, GroupRational)]
        assert {act.training for act in acts} == {on}
        assert {p.requires_grad for p in model[i].parameters()} == {on}
        assert {p.dtype for p in model[i].parameters()} == {torch.bfloat16}
    assert model(torch.randn(2, 16, dtype=torch.bfloat16)).dtype is torch.bfloat16


def test_device_is_kept(device):
    for kind in (device, 'meta'):
        model = mlp().to(kind)
        kat_mm.to_kat(model)
        assert {p.device.type for p in model.parameters()} == {kind}


def test_weights_and_hooks_are_kept():
    model = mlp()
    weights, seen = dict(model.named_parameters()), []
    model.fc1.register_forward_hook(lambda *_: seen.append('fc1'))
    model.register_forward_hook(lambda *_: seen.append('mlp'))
    model.act.register_forward_hook(lambda *_: seen.append('act'))
    kat_mm.to_kat(model)
    assert seen == []
    model(torch.randn(2, 16))
    assert seen == ['fc1', 'mlp']
    now = {n.replace('.layer.', '.'): parameter for n, parameter in model.named_parameters()}
    assert all(parameter is now[n] for n, parameter in weights.items())


def test_copies_are_independent():
    model, x = mlp(), torch.randn(2, 16)
    kat_mm.to_kat(model)
    for twin in (deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(x), model(x))
        nn.init.zeros_(twin.fc1.act1.weight_numerator)
        assert not torch.equal(twin(x), model(x))


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (dict(num_groups=0), 'num_groups=0 must be a whole number from 1 on'),
        (dict(order=(9, 4)), r'order=\(9, 4\) must be two degrees'),
        (dict(interval=0), 'interval=0 must be a positive number'),
        (dict(interval=float('nan')), 'interval=nan must be a positive number'),
        (dict(interval=float('inf')), 'interval=inf must be a positive number'),
        (dict(interval=(-3, 3)), r'interval=\(-3, 3\) must be a number'),
    ],
)
def test_wrong_arguments_leave_the_model_unchanged(arguments, message):
    model = nn.Sequential(mlp(), mlp(nn.ReLU))
    with pytest.raises(ValueError, match=message):
        kat_mm.to_kat(model, **arguments)
    assert not [m for m in model.modules() if isinstance(m, GroupRational)]


def test_groups_and_order():
    model = mlp(inputs=12, hidden=36)
    kat_mm.to_kat(model, num_groups=4, order=(7, 6))
    assert (model.act.num_groups, model.act.order) == (4, (7, 6))


@pytest.mark.slow
def test_compiles_without_graph_breaks():
    model, x = nn.Sequential(mlp(), mlp()), torch.randn(2, 5, 16)
    kat_mm.to_kat(model)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend='aot_eager')
    torch.testing.assert_close(compiled(x), model(x))
