"""GR-KAN layers under FSDP2 (`fully_shard`): 8 groups on as many processes as divide them, and not.

One launch of processes makes all checks, as they take longer to start than to check.
"""

import os

import pytest
import torch
from torch import distributed, multiprocessing, nn
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    set_model_state_dict,
)
from torch.distributed.fsdp import fully_shard
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn

from kat_mm.models import GRKAN, KAT
from kat_mm.rational import GroupRational, published_state_dict

FULL = StateDictOptions(full_state_dict=True)
FROM_RANK_0 = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)


class Network(nn.Module):
    """Two GR-KAN layers, and an activation that is called twice."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([GRKAN(16, 32), GRKAN(16, 32)])
        self.act = GroupRational(shared_numerator=False)
        self.last = nn.Linear(16, 4)

    def forward(self, x):
        for layer in self.layers:
            x = self.act(layer(x))
        return self.last(self.act(x))


def network(seed, shared=False):
    """Returns one with drawn weights; `shared` gives its activation a second name."""
    torch.manual_seed(seed)
    model = Network()
    if shared:  # torch's set_model_state_dict does not take a full state dict with two names
        model.same_act = model.act
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


def sharded(model):
    for layer in model.layers:
        fully_shard(layer)
    fully_shard(model.act)
    return fully_shard(model)


def train(model):
    torch.manual_seed(7)
    optimizer = torch.optim.AdamW(model.parameters(), 0.1)
    model(torch.randn(5, 16)).square().mean().backward()
    optimizer.step()


def check_equal(model, plain):
    """Checks the weights of a sharded model against those of a plain one."""
    found, expected = get_model_state_dict(model, options=FULL), plain.state_dict()
    assert found.keys() == expected.keys()
    for key, value in found.items():
        torch.testing.assert_close(value, expected[key], msg=key)


def check_state_dicts(folder):
    plain, model = network(0, shared=True), sharded(network(0, shared=True))
    check_equal(model, plain)
    for state in (model.state_dict(), model.state_dict(keep_vars=True)):
        for key, value in state.items():
            assert torch.equal(value.full_tensor(), plain.state_dict()[key]), key
    parameters = dict(model.named_parameters())
    state = model.state_dict(keep_vars=True)
    assert all(state[name] is parameter for name, parameter in parameters.items())
    published = published_state_dict(model, get_model_state_dict(model, options=FULL))
    assert published['act.weight_numerator'].shape == (8, 6)
    alone = network(1, shared=True)
    alone.load_state_dict(published)
    check_equal(model, alone)
    model = sharded(network(1, shared=True))
    model.load_state_dict(state)
    check_equal(model, plain)


def check_loading(folder):
    plain, states = network(0), sharded(network(0)).state_dict()
    model = sharded(network(1))
    model.load_state_dict(states)
    check_equal(model, plain)
    model = sharded(network(1))
    model.load_state_dict(dict(sharded(network(0)).named_parameters()))
    check_equal(model, plain)
    model = sharded(network(1))
    set_model_state_dict(model, get_model_state_dict(sharded(network(0))))
    check_equal(model, plain)
    model = sharded(network(1))
    set_model_state_dict(model, plain.state_dict(), options=FULL)
    check_equal(model, plain)
    for make in (lambda: sharded(network(1)), meta):
        model = make()
        full = plain.state_dict() if distributed.get_rank() == 0 else {}
        set_model_state_dict(model, full, options=FROM_RANK_0)
        check_equal(model, plain)


def meta():
    with torch.device('meta'):
        model = Network()
    return sharded(model).to_empty(device='cpu')


def check_reset(folder):
    model, fresh = meta(), GroupRational(shared_numerator=False).state_dict()
    for layer in (model.act, model.layers[0]):
        layer.reset_parameters()
    state = get_model_state_dict(model, options=FULL)
    for key, value in fresh.items():
        assert torch.equal(state[f'act.{key}'], value), key
    assert torch.equal(state['layers.0.act2.weight_denominator'], fresh['weight_denominator'])


def check_distributed_checkpoints(folder):
    plain, model = network(0), sharded(network(0))
    dcp.save(get_model_state_dict(model), checkpoint_id=folder)
    model = sharded(network(1))
    state = get_model_state_dict(model)
    dcp.load(state, checkpoint_id=folder)
    set_model_state_dict(model, state)
    check_equal(model, plain)
    alone = network(1)
    state = alone.state_dict()
    dcp.load(state, checkpoint_id=folder)  # in place
    check_equal(model, alone)


def check_training(folder):
    plain, model = network(0), sharded(network(0))
    averages = []
    for each in (plain, model):
        averages.append(AveragedModel(network(0), avg_fn=get_ema_avg_fn(0.5)))
        if each is model:
            sharded(averages[-1].module)
        averages[-1].update_parameters(each)
        train(each)
        averages[-1].update_parameters(each)
    check_equal(model, plain)
    check_equal(averages[1].module, averages[0].module)
    assert not torch.equal(plain.act.weight_numerator, averages[0].module.act.weight_numerator)


def check_attention_that_blocks_share(folder):
    attention = dict(window_size=2, global_blocks=(3,), rel_pos=True)
    arch = dict(embed_dims=16, num_layers=4, num_heads=2)
    for shared in (True, ['proj', 'rel_pos_h']):
        models = []
        for _ in range(2):
            torch.manual_seed(0)
            models.append(KAT(arch, 64, attention={**attention, 'shared': shared}))
        plain, model = models
        if shared is True:  # a unit of its own, which no block's then takes
            for part in (model.blocks[0].attn, *model.blocks):
                fully_shard(part)
        fully_shard(model)
        check_equal(model, plain)
        images = torch.randn(2, 3, 48, 64)
        for each in models:
            each(images)[0].square().mean().backward()
        expected = {name: parameter.grad for name, parameter in plain.named_parameters()}
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(parameter.grad.full_tensor(), expected[name], msg=name)


def run(rank, processes, folder):
    torch.set_num_threads(1)
    distributed.init_process_group(
        'gloo', init_method=f'file://{folder}/store', rank=rank, world_size=processes
    )
    check_state_dicts(folder)
    check_loading(folder)
    check_reset(folder)
    check_distributed_checkpoints(f'{folder}/checkpoint')
    check_training(folder)
    check_attention_that_blocks_share(folder)
    distributed.barrier()
    distributed.destroy_process_group()
    # Device meshes outlive their groups, and with them gloo's threads, which at times abort the
    # process while Python shuts down ("terminate called without an active exception").
    os._exit(0)


@pytest.mark.slow
@pytest.mark.parametrize('processes', [2, 3])
def test_sharded_layers(processes, tmp_path):
    multiprocessing.spawn(run, (processes, str(tmp_path)), processes)
