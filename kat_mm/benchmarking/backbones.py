"""What tools/benchmark_backbone.py compares: KAT, its twins and timm's ViT."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..attention import ATTENTIONS
from ..attention.karat import KArAt
from ..attention.mimetic import skip_mimetic_init
from ..attention.projections import join_heads, split_heads
from ..errors import UserError
from ..models import KAT
from .timing import gpu_usage, owned_bytes, spread, time_in_turns

CLASSES = 1000
BEST_GRID_SIZE = {'tiny': 3, 'small': 3, 'base': 1}  # of KArAt (arXiv 2503.10632)
COMPILERS = {
    'eager': lambda model: model,
    'compile': torch.compile,
    'cudagraphs': partial(torch.compile, mode='reduce-overhead'),
}


class Classifier(nn.Module):
    """Computes 1000 classes of images from the mean of a backbone's features."""

    def __init__(self, backbone: nn.Module, features: Callable[[Tensor], Tensor], dims: int):
        super().__init__()
        self.backbone = backbone
        self.features = features
        self.head = nn.Linear(dims, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images))


@ATTENTIONS.register('KArAt_table')
class TableAttention(KArAt):
    """Kolmogorov-Arnold attention as its formula stands, to compare with.

    All values of the basis are kept for the backward pass, and W Phi(S) is formed.
    """

    def attend(self, x: Tensor, grid: tuple[int, int], mask: Tensor | None = None) -> Tensor:
        q, k, v = split_heads(x, self.num_heads)
        operator = self.operator
        inner, outer = operator.scales(x.shape[1])
        scores = q @ k.mT * q.shape[-1] ** -0.5
        z = operator.units.basis.sums(scores, operator.units.coefficients) * inner
        return join_heads((z @ operator.weight.mT * outer) @ v)


def kat(
    arch: str, size: int | tuple[int, int], ffn: str = 'gr_kan', attention: str = 'softmax'
) -> Classifier:
    config = dict(type=attention)
    if attention != 'softmax':
        config['basis'] = dict(type='fourier', grid_size=BEST_GRID_SIZE[arch])
    with skip_mimetic_init():
        backbone = KAT(arch, size, ffn=ffn, attention=config)
    return Classifier(
        backbone, lambda images: backbone(images)[0].mean((2, 3)), backbone.embed_dims
    )


def timm_vit(arch: str, size: int) -> Classifier:
    import timm

    backbone = timm.create_model(f'vit_{arch}_patch16_224', img_size=size, num_classes=0)
    return Classifier(
        backbone, lambda images: backbone.forward_features(images).mean(1), backbone.embed_dim
    )


MODELS = {
    'kat': kat,
    'kat-mlp': partial(kat, ffn='mlp'),
    'timm-vit': timm_vit,
    'karat': partial(kat, attention='KArAt'),
    'karat-mlp': partial(kat, ffn='mlp', attention='KArAt'),
    'karat-table-mlp': partial(kat, ffn='mlp', attention='KArAt_table'),
}


@dataclass(frozen=True)
class Subject:
    """A model that is measured: a step of one pass, and the tensors that it owns all the time."""

    step: Callable[[], Tensor]
    model: nn.Module
    optimizer: torch.optim.Optimizer | None = None


def build(name: str, arch: str, part: str, mode: str, images: Tensor, autocast: str) -> Subject:
    """Makes a model of `MODELS`, and what makes a step of one pass, 'train' or 'infer', of it."""
    device = images.device
    torch.manual_seed(0)
    model = MODELS[name](arch, images.shape[-1]).to(device).train(part == 'train')
    forward = COMPILERS[mode](model)
    begin = torch.compiler.cudagraph_mark_step_begin if mode == 'cudagraphs' else lambda: None
    dtype = torch.bfloat16 if autocast == 'bf16' else None

    def mixed():
        return torch.autocast(device.type, dtype) if dtype else nullcontext()

    def infer() -> Tensor:
        begin()
        with torch.no_grad(), mixed():
            return forward(images)

    if part == 'infer':
        return Subject(infer, model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=device.type == 'cuda')
    labels = torch.arange(len(images), device=device) % CLASSES

    def train() -> Tensor:
        begin()
        with mixed():
            loss = F.cross_entropy(forward(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    return Subject(train, model, optimizer)


def measure(
    subjects: dict[str, Subject],
    device: torch.device,
    mode: str,
    rounds: int,
    steps: int,
    warmup: int,
    advance: Callable[[], object],
) -> dict[str, dict]:
    """Returns the figures of each subject, by the columns of the tool's CSV file.

    Args:
        subjects: what to measure, by name.
        device: where they are.
        mode: what they were compiled by.
        rounds: how many times each has its turn.
        steps: steps of a round.
        warmup: steps before.
        advance: called after each warm subject and each round, to show progress.

    Raises:
        UserError: if the result of a subject is not finite.
    """
    figures = {name: {} for name in subjects}
    for name, subject in subjects.items():
        for _ in range(warmup):
            result = subject.step()
        if not result.isfinite().all():
            raise UserError(f'{name}: its result is not finite; try --autocast none')
        del result
        advance()
    for name, subject in subjects.items():
        if device.type == 'cuda':
            figures[name] = gpu_usage(subject.step, owned_bytes(subject.model, subject.optimizer))
            if mode == 'cudagraphs':  # they have pools of their own, and a replay allocates nothing
                del figures[name]['peak_mib']
    calls = {name: subject.step for name, subject in subjects.items()}
    for name, values in time_in_turns(calls, rounds, device, steps, on_round=advance).items():
        ms = spread(values)
        figures[name].update(median_ms=ms.median, q1_ms=ms.q1, q3_ms=ms.q3)
    return figures
