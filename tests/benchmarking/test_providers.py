"""What tools/benchmark_rational.py measures computes what it says."""

from dataclasses import replace

import pytest
import torch
from torch.nn.functional import gelu

from kat_mm.benchmarking.providers import (
    Case,
    backward_call,
    built_in,
    by_autograd,
    forward_call,
    make_inputs,
    memory,
)
from kat_mm.rational.reference import rational_backward_reference, rational_reference

CPU = torch.device('cpu')
LAST = Case((3, 5, 16), -1, torch.float32, torch.float32)
FIRST = Case((2, 16, 3, 3), 1, torch.float32, torch.float32)
MIXED = Case((3, 5, 16), -1, torch.float32, torch.bfloat16)
CASES = pytest.mark.parametrize('case', [LAST, FIRST, MIXED], ids=['last', 'first', 'mixed'])


def inputs_of(case, working_set=0):
    return make_inputs(case, (5, 4), 4, CPU, working_set)


def run(provider, case):
    """The result of forward and of backward, for the first activation."""
    inputs = inputs_of(case)
    arguments = (inputs.activations[0], *inputs.coefficients)
    saved = provider.prepare(*arguments)
    return provider.function(*arguments), provider.backward(inputs.grads[0], saved)


@CASES
@pytest.mark.parametrize('name', ['kernel', 'reference'])
def test_the_op(case, name):
    inputs = inputs_of(case)
    x, (a, b) = inputs.activations[0], inputs.coefficients
    y, grads = run(built_in(case, [name])[name], case)
    assert y.dtype == case.out_dtype
    torch.testing.assert_close(y, rational_reference(x, a, b, case.channel_dim, case.out_dtype))
    expected = rational_backward_reference(inputs.grads[0], x, a, b, case.channel_dim)
    for got, want in zip(grads, expected, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-3)


@CASES
def test_the_others(case):
    inputs = inputs_of(case)
    x, grad, providers = (
        inputs.activations[0],
        inputs.grads[0],
        built_in(case, ('gelu', 'copy', 'cast')),
    )
    y, dx = run(providers['copy'], case)
    assert torch.equal(y, x.to(case.out_dtype))
    assert y.data_ptr() != x.data_ptr()
    assert torch.equal(dx, x + grad)
    assert dx.dtype == case.dtype

    leaf = x.clone().requires_grad_()
    expected = gelu(leaf.to(case.out_dtype))
    y, dx = run(providers['gelu+cast' if case is MIXED else 'gelu'], case)
    assert torch.equal(y, expected)
    assert torch.equal(dx, *torch.autograd.grad(expected, leaf, grad))

    assert ('cast' in providers) == (case is MIXED)
    if case is MIXED:
        y, dx = run(providers['cast'], case)
        assert torch.equal(y, x.bfloat16())
        assert torch.equal(dx, grad.float())


def test_coefficients_are_those_of_a_layer():
    """One numerator for all groups and a denominator for each."""
    inputs = make_inputs(LAST, (6, 3), 8, CPU, 0)
    assert [tuple(c.shape) for c in inputs.coefficients] == [(1, 7), (8, 3)]


@pytest.mark.parametrize(('working_set', 'sets'), [(0, 1), (960, 1), (961, 2), (9600, 10)])
def test_calls_go_round_in_the_working_set(working_set, sets):
    assert LAST.bytes() == 960
    inputs = inputs_of(LAST, working_set)
    assert len({x.data_ptr() for x in inputs.activations}) == sets
    assert len({grad.data_ptr() for grad in inputs.grads}) == sets
    seen = []
    provider = by_autograd(lambda x, a, b: seen.append(x.data_ptr()) or x * a.sum() * b.sum())
    call = forward_call(provider, inputs)
    del seen[:]
    for _ in range(2 * sets):
        call()
    assert sorted(seen) == sorted(2 * [x.data_ptr() for x in inputs.activations])


def test_backward_runs_again_and_again():
    inputs, grads = inputs_of(LAST, 3000), []
    reference = by_autograd(rational_reference)
    provider = replace(reference, backward=lambda *args: grads.append(reference.backward(*args)))
    call = backward_call(provider, inputs)
    call()
    assert len(grads) == len(inputs.activations) + 1
    for got in grads:
        assert all(torch.equal(*pair) for pair in zip(got, grads[0], strict=True))


def test_memory():
    """The op keeps its inputs, as GELU does, and the plain formula much more."""
    inputs, names = inputs_of(LAST), ('kernel', 'reference', 'gelu')
    saved = {k: memory(v, inputs)['saved'] for k, v in built_in(LAST, names).items()}
    assert saved['gelu'] == LAST.bytes()
    assert saved['kernel'] == LAST.bytes() + sum(c.nbytes for c in inputs.coefficients)
    assert saved['reference'] > 5 * LAST.bytes()
