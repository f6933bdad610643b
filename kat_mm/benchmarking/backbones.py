"""What tools/benchmark_backbone.py compares: KAT, its twin with plain MLPs and timm's ViT."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..attention.mimetic import skip_mimetic_init
from ..errors import UserError
from ..models import KAT
from .timing import gpu_usage, owned_bytes, spread, time_in_turns

CLASSES = 1000
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


def kat(arch: str, size: int | tuple[int, int], ffn: str = 'gr_kan') -> Classifier:
    with skip_mimetic_init():
        backbone = KAT(arch, size, ffn=ffn)
    return Classifier(
        backbone, lambda images: backbone(images)[0].mean((2, 3)), backbone.embed_dims
    )


def timm_vit(arch: str, size: int) -> Classifier:
    import timm

    backbone = timm.create_model(f'vit_{arch}_patch16_224', img_size=size, num_classes=0)
    return Classifier(
        backbone, lambda images: backbone.forward_features(images).mean(1), backbone.embed_dim
    )


MODELS = {'kat': kat, 'kat-mlp': partial(kat, ffn='mlp'), 'timm-vit': timm_vit}


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
