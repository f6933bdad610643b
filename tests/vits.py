"""Small ViTs with drawn weights, and the layouts that published ones are saved in."""

import numpy as np
import torch
from timm.layers import get_act_layer
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer
from torch import nn


def vit(kind=VisionTransformer, **kwargs):
    torch.manual_seed(0)
    sizes = dict(img_size=32, patch_size=8, embed_dim=64, depth=2, num_heads=1, num_classes=3)
    model = kind(**{**sizes, **kwargs}).eval()
    for name, parameter in model.named_parameters():
        nn.init.normal_(parameter, 'norm' in name and 'weight' in name, 0.1)
    return model


def timm_layout():
    model = vit()
    return model, model.state_dict()


def mae():
    model = vit(num_classes=0)
    decoder = {'mask_token': torch.zeros(1, 1, 32), 'decoder_embed.weight': torch.zeros(32, 64)}
    return model, {'model': {**model.state_dict(), **decoder}}


def dino():
    model = vit(num_classes=0)
    student = {f'module.backbone.{k}': v for k, v in model.state_dict().items()}
    return model, {'teacher': student, 'epoch': 1}


def deit3():
    model = vit(init_values=0.1, no_embed_class=True)
    state = {}
    for key, value in model.state_dict().items():
        state[key.replace('ls1.gamma', 'gamma_1').replace('ls2.gamma', 'gamma_2')] = value
    return model, {'model': state}


def distilled():
    model = vit(VisionTransformerDistilled)
    return model, {'model': model.state_dict()}


def dinov2():
    model = vit(init_values=0.1, reg_tokens=4, no_embed_class=True, num_classes=0)
    state = dict(model.state_dict())
    state['register_tokens'] = state.pop('reg_token')
    position = torch.randn(1, 1, 64)  # of the class token, which timm's layout has added
    state['pos_embed'] = torch.cat([position, state['pos_embed']], 1)
    state['cls_token'] = state['cls_token'] - position
    return model, {**state, 'mask_token': torch.zeros(1, 64)}


def clip(activation='quick_gelu'):
    model = vit(pre_norm=True, num_classes=0, act_layer=get_act_layer(activation))
    names = {
        'patch_embed.proj': 'conv1',
        'pos_embed': 'positional_embedding',
        'cls_token': 'class_embedding',
        'norm_pre': 'ln_pre',
        'attn.qkv.': 'attn.in_proj_',
        'attn.proj': 'attn.out_proj',
        'mlp.fc1': 'mlp.c_fc',
        'mlp.fc2': 'mlp.c_proj',
        'blocks.': 'transformer.resblocks.',
        'norm1': 'ln_1',
        'norm2': 'ln_2',
    }
    state = {'logit_scale': torch.zeros(()), 'visual.proj': torch.zeros(64, 16)}
    for key, value in model.state_dict().items():
        key = 'ln_post' + key[4:] if key.startswith('norm.') else key
        for ours, theirs in names.items():
            key = key.replace(ours, theirs)
        if key in ('positional_embedding', 'class_embedding'):
            value = value.squeeze(0) if key[0] == 'p' else value.flatten()
        state[f'visual.{key}'] = value
    return model, state


def augreg(path):
    """Saves a ViT in the layout of AugReg's files, with two heads of 32 channels."""
    model = vit(num_heads=2)
    state = {key: value.numpy() for key, value in model.state_dict().items()}
    arrays = {
        'cls': state['cls_token'],
        'embedding/kernel': state['patch_embed.proj.weight'].transpose(2, 3, 1, 0),
        'embedding/bias': state['patch_embed.proj.bias'],
        'Transformer/posembed_input/pos_embedding': state['pos_embed'],
        'Transformer/encoder_norm/scale': state['norm.weight'],
        'Transformer/encoder_norm/bias': state['norm.bias'],
        'head/kernel': state['head.weight'].T,
        'head/bias': state['head.bias'],
    }
    for i in range(2):
        block, ours = f'Transformer/encoderblock_{i}/', f'blocks.{i}.'
        attention = block + 'MultiHeadDotProductAttention_1/'
        for n, name in enumerate(('query', 'key', 'value')):
            rows = slice(64 * n, 64 * n + 64)
            kernel = state[ours + 'attn.qkv.weight'][rows].T.reshape(64, 2, 32)
            arrays[f'{attention}{name}/kernel'] = kernel
            bias = state[ours + 'attn.qkv.bias'][rows].reshape(2, 32)
            arrays[f'{attention}{name}/bias'] = bias
        arrays[attention + 'out/kernel'] = state[ours + 'attn.proj.weight'].T.reshape(2, 32, 64)
        arrays[attention + 'out/bias'] = state[ours + 'attn.proj.bias']
        for n in (0, 1):
            dense = f'{block}MlpBlock_3/Dense_{n}/'
            arrays[dense + 'kernel'] = state[f'{ours}mlp.fc{n + 1}.weight'].T
            arrays[dense + 'bias'] = state[f'{ours}mlp.fc{n + 1}.bias']
            norm = f'{block}LayerNorm_{2 * n}/'
            arrays[norm + 'scale'] = state[f'{ours}norm{n + 1}.weight']
            arrays[norm + 'bias'] = state[f'{ours}norm{n + 1}.bias']
    np.savez(path, **arrays)
    return model
