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
from timm.models.mlp_mixer import SpatialGatingUnit
from torch import nn

import kat_mm
from kat_mm.models import GRKAN
from kat_mm.rational import GroupRational


def test_computes_the_gr_kan_layer():
    model = mlp(bias=False)
    assert kat_mm.to_kat(model)
    layer = GRKAN(16, 32, act_init=('identity', 'gelu'))
    layer.load_state_dict(model.state_dict(), strict=False)
    nn.init.zeros_(layer.fc1.bias)
    for ours, theirs in ((layer.act1, model.fc1.act1), (layer.act2, model.act)):
        for parameter in ours.parameters():
            nn.init.normal_(parameter)
        theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 5, 16)
    torch.testing.assert_close(model(x), layer(x))


def test_keys():
    model = nn.ModuleDict({'mlp': mlp()})
    keys = set(model.state_dict())
    kat_mm.to_kat(model)
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    assert {key: shape for key, shape in shapes.items() if key not in keys} == {
        'mlp.fc1.act1.weight_numerator': (6,),
        'mlp.fc1.act1.weight_denominator': (32,),
        'mlp.act.weight_numerator': (6,),
        'mlp.act.weight_denominator': (32,),
    }
    assert keys < set(shapes)


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
    assert all(parameter is dict(model.named_parameters())[n] for n, parameter in weights.items())


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
