"""The linear cross-entropy against torch's own, and what it keeps in memory."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from bigtrain.models.losses import linear_cross_entropy


def reference(hidden, weight, labels):
    return F.cross_entropy(F.linear(hidden, weight).float(), labels, reduction="sum", ignore_index=-100)


def both(n, d, v, chunk, ignored=0.3, seed=0, scale=1.0):
    """(loss, gradient of hidden, gradient of weight) of ours and of torch's."""
    torch.manual_seed(seed)
    hidden, weight = torch.randn(n, d), torch.randn(v, d) * 0.3
    labels = torch.randint(0, v, (n,))
    labels[torch.rand(n) < ignored] = -100
    out = []
    for function in (lambda *a: linear_cross_entropy(*a, chunk), reference):
        h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        loss = function(h, w, labels)
        (loss * scale).backward()
        out.append((loss.detach(), h.grad, w.grad))
    return out


@pytest.mark.parametrize(
    ("n", "d", "v", "chunk"), [(1, 1, 2, None), (37, 13, 101, 5), (64, 8, 31, 64), (65, 8, 31, 64), (7, 3, 1000, 1)]
)
@pytest.mark.parametrize("scale", [1.0, 1 / 37])
def test_loss_and_gradients_are_torchs(n, d, v, chunk, scale):
    ours, torchs = both(n, d, v, chunk, scale=scale)
    for a, b in zip(ours, torchs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6 * max(1.0, b.abs().max().item()))


def test_no_target_at_all_is_a_loss_and_gradients_of_zero():
    (loss, grad_hidden, grad_weight), _ = both(9, 4, 11, 4, ignored=2.0)
    assert loss == 0
    assert grad_hidden.abs().max() == 0
    assert grad_weight.abs().max() == 0


def test_in_double_it_is_exact_and_the_slope_of_the_loss():
    torch.manual_seed(0)
    hidden = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([0, 4, -100, 2, 2, 1])
    grads = torch.autograd.grad(linear_cross_entropy(hidden, weight, labels, 4), (hidden, weight))
    with torch.no_grad():
        for tensor, grad in zip((hidden, weight), grads, strict=True):
            way = torch.randn_like(tensor)
            tensor += 1e-5 * way
            above = linear_cross_entropy(hidden, weight, labels, 4)
            tensor -= 2e-5 * way
            slope = (above - linear_cross_entropy(hidden, weight, labels, 4)) / 2e-5
            tensor += 1e-5 * way
            torch.testing.assert_close(slope, (grad * way).sum(), rtol=1e-8, atol=1e-8)


def test_what_lies_on_an_ignored_place_reaches_nothing():
    hidden = torch.randn(4, 3)
    hidden[1] = float("nan")
    hidden.requires_grad_()
    weight = torch.randn(5, 3, requires_grad=True)
    loss = linear_cross_entropy(hidden, weight, torch.tensor([0, -100, 2, 3]))
    loss.backward()
    assert loss.isfinite()
    assert weight.grad.isfinite().all()
    assert hidden.grad[1].abs().max() == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("autocast", [True, False])
def test_half_precision_is_as_near_to_fp32_as_torchs_own(dtype, autocast):
    torch.manual_seed(0)
    hidden, weight, labels = torch.randn(300, 32), torch.randn(211, 32) * 0.2, torch.randint(0, 211, (300,))
    scale = 257 / 65536  # as far from a bf16 number as can be: the engines divide by any number of targets

    def run(function, half):
        h, w = hidden.clone(), weight.clone()
        if half and not autocast:
            h, w = h.to(dtype), w.to(dtype)
        h.requires_grad_(), w.requires_grad_()
        with torch.autocast("cpu", dtype=dtype, enabled=half and autocast):
            loss = function(h, w, labels)
        (loss.float() * scale).backward()
        assert (h.grad.dtype, w.grad.dtype) == (h.dtype, w.dtype)
        return loss.detach(), h.grad.float(), w.grad.float()

    truth = run(reference, half=False)
    ours = run(lambda *a: linear_cross_entropy(*a, 64), half=True)
    torchs = run(reference, half=True)
    assert ours[0].dtype == torch.float32
    for a, b, c in zip(ours, torchs, truth, strict=True):
        assert (a - c).norm() <= 1.2 * (b - c).norm() + 1e-3 * c.norm()
    # No tilt: projected on the truth, the gradient is as long as it should be.
    for a, c in zip(ours[1:], truth[1:], strict=True):
        assert abs((a * c).sum() / (c * c).sum() - 1) < 2e-3


def test_no_gradient_no_work_for_it():
    hidden, weight = torch.randn(5, 3, requires_grad=True), torch.randn(7, 3, requires_grad=True)
    labels = torch.tensor([1, 2, 3, 4, -100])
    with torch.no_grad():
        loss = linear_cross_entropy(hidden, weight, labels)
    assert not loss.requires_grad
    torch.testing.assert_close(loss, reference(hidden, weight, labels).detach())


def test_a_frozen_head_or_frozen_hidden_gets_no_gradient():
    labels = torch.tensor([1, 2])
    hidden, weight = torch.randn(2, 3, requires_grad=True), torch.randn(7, 3)
    linear_cross_entropy(hidden, weight, labels).backward()
    expected = torch.autograd.grad(reference(hidden, weight, labels), hidden)[0]
    torch.testing.assert_close(hidden.grad, expected)
    hidden, weight = hidden.detach(), weight.requires_grad_()
    linear_cross_entropy(hidden, weight, labels).backward()
    expected = torch.autograd.grad(reference(hidden, weight, labels), weight)[0]
    torch.testing.assert_close(weight.grad, expected)


def test_walking_the_graph_twice_is_an_error_not_a_wrong_gradient():
    hidden, weight = torch.randn(2, 3, requires_grad=True), torch.randn(7, 3, requires_grad=True)
    loss = linear_cross_entropy(hidden, weight, torch.tensor([1, 2]))
    (loss * 2).backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        (loss * 2).backward()


def test_the_logits_never_all_exist():
    """No tensor of the forward or backward pass is as large as the logits."""
    n, d, v = 512, 8, 4000
    hidden, weight = torch.randn(n, d, requires_grad=True), torch.randn(v, d, requires_grad=True)
    sizes = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            sizes.extend(t.numel() for t in (out if isinstance(out, tuple) else (out,)) if isinstance(t, torch.Tensor))
            return out

    with Watch():
        linear_cross_entropy(hidden, weight, torch.randint(0, v, (n,)), 64).backward()
    assert 0 < max(sizes) <= 64 * v
