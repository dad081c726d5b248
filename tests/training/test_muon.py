"""The batched Muon does what torch's does, matrix by matrix, up to torch's bfloat16."""

from __future__ import annotations

import pytest
import torch

from training.muon import Muon, orthogonalise


@pytest.mark.parametrize("shape", [(16, 40), (40, 16)])
def test_singular_values_become_about_one(shape):
    torch.manual_seed(0)
    values = torch.linalg.svdvals(orthogonalise(torch.randn(3, *shape)))
    assert values.min() > 0.5 and values.max() < 1.3


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch has it since 2.9")
def test_muon_follows_torch_s():
    torch.manual_seed(0)
    weights = [torch.randn(24, 24), torch.randn(24, 24), torch.randn(40, 16), torch.randn(16, 40)]
    ours = [torch.nn.Parameter(w.clone()) for w in weights]
    theirs = [torch.nn.Parameter(w.clone()) for w in weights]
    mine = Muon(ours, lr=0.02, weight_decay=0.01)
    other = torch.optim.Muon(theirs, lr=0.02, weight_decay=0.01)
    for _ in range(5):
        for a, b in zip(ours, theirs):
            a.grad = torch.randn_like(a)
            b.grad = a.grad.clone()
        mine.step()
        other.step()
    for a, b, start in zip(ours, theirs, weights):
        moved = (b - start).norm()
        assert moved > 0.1
        assert (a - b).norm() < 0.05 * moved


def test_a_convolution_is_a_matrix():
    torch.manual_seed(0)
    kernel = torch.nn.Parameter(torch.randn(8, 4, 3, 3))
    matrix = torch.nn.Parameter(kernel.detach().flatten(1).clone())
    kernel.grad = torch.randn_like(kernel)
    matrix.grad = kernel.grad.flatten(1).clone()
    Muon([kernel], lr=0.02).step()
    Muon([matrix], lr=0.02).step()
    assert torch.equal(kernel.flatten(1), matrix)
