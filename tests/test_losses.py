"""The losses against values worked out by hand, and the property that the paper's argument rests on."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from kdbench.kd.methods import Batch, build, read_settings
from kdbench.kd.models import Answer
from kdbench.kd.procedure import CANONICAL, combine, soft_loss


def softmax(row, temperature):
    top = [math.exp(z / temperature) for z in row]
    return [t / sum(top) for t in top]


@pytest.mark.parametrize("temperature", [1.0, 2.0, 4.0])
def test_soft_loss_is_t_squared_times_the_mean_kl(temperature):
    student, teacher = [[1.0, 0.0, -2.0], [0.5, 0.5, 3.0]], [[2.0, -1.0, 0.0], [0.0, 1.0, 1.0]]
    kls = []
    for z_s, z_t in zip(student, teacher, strict=True):
        p_s, p_t = softmax(z_s, temperature), softmax(z_t, temperature)
        kls.append(sum(t * math.log(t / s) for t, s in zip(p_t, p_s, strict=True)))
    found = soft_loss(torch.tensor(student), torch.tensor(teacher), temperature).item()
    assert found == pytest.approx(temperature**2 * sum(kls) / 2, rel=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_its_gradient_is_the_difference_of_the_distributions(temperature):
    z_s, z_t = torch.randn(5, 4, dtype=torch.double, requires_grad=True), torch.randn(5, 4, dtype=torch.double)
    (gradient,) = torch.autograd.grad(soft_loss(z_s, z_t, temperature), z_s)
    difference = F.softmax(z_s / temperature, 1) - F.softmax(z_t / temperature, 1)
    torch.testing.assert_close(gradient, temperature / 5 * difference.detach())


@pytest.mark.parametrize("seed", range(5))
def test_minimising_kl_is_maximum_likelihood_under_the_teacher(seed):
    """Same gradient as T^2 times soft cross-entropy; the values differ by T^2 times the teacher's entropy."""
    rng = torch.Generator().manual_seed(seed)
    temperature = 2.5
    z_s = torch.randn(6, 10, generator=rng, dtype=torch.double, requires_grad=True)
    p_t = F.softmax(torch.randn(6, 10, generator=rng, dtype=torch.double) / temperature, 1)
    z_t = p_t.log() * temperature
    kl = soft_loss(z_s, z_t, temperature)
    likelihood = -(temperature**2) * (p_t * F.log_softmax(z_s / temperature, 1)).sum(1).mean()
    (a,), (b,) = torch.autograd.grad(kl, z_s), torch.autograd.grad(likelihood, z_s)
    torch.testing.assert_close(a, b)
    entropy = -(p_t * p_t.log()).sum(1).mean()
    torch.testing.assert_close(likelihood - kl, temperature**2 * entropy)


def test_weights_go_by_name():
    assert combine(torch.tensor(2.0), torch.tensor(5.0), ce_weight=0.3, kd_weight=0.7).item() == pytest.approx(4.1)


def feature_kd(student_channels, teacher_channels, beta=0.5):
    rng = torch.Generator().manual_seed(0)
    settings = read_settings("feature", {"kd_weight": 1, "beta": beta})
    return build("feature", student_channels, teacher_channels, settings, CANONICAL, rng)


NOTHING = Batch((), None, None, None)
"The batch of a method that asks for no part of it."


def test_feature_loss_by_hand():
    method = feature_kd([2, 2], [3, 2])
    rng = np.random.default_rng(0)
    shapes = [((4, 2, 4, 4), (4, 3, 4, 4)), ((4, 2, 2, 2), (4, 2, 2, 2))]
    f_s = [rng.normal(size=s).astype(np.float32) for s, _ in shapes]
    f_t = [rng.normal(size=t).astype(np.float32) for _, t in shapes]
    stages = []
    for projector, s, t in zip(method.projectors, f_s, f_t, strict=True):
        weight = projector.weight.detach().numpy()[:, :, 0, 0]
        p = np.einsum("oc,bchw->bohw", weight, s)
        mse = ((p - t) ** 2).mean()
        gap_p, gap_t = p.mean((2, 3)), t.mean((2, 3))
        cosine = (gap_p * gap_t).sum(1) / np.linalg.norm(gap_p, axis=1) / np.linalg.norm(gap_t, axis=1)
        stages.append(mse + 0.5 * (1 - cosine).mean())
    answers = [Answer(torch.zeros(4, 10), tuple(map(torch.from_numpy, f))) for f in (f_s, f_t)]
    assert method(*answers, NOTHING)["kd"].item() == pytest.approx(np.mean(stages), rel=1e-5)


def test_projectors_are_there_also_where_channels_are_equal():
    method = feature_kd([8, 16, 32, 64], [8, 16, 32, 64])
    assert [tuple(p.weight.shape) for p in method.projectors] == [(c, c, 1, 1) for c in (8, 16, 32, 64)]
    assert all(p.bias is None for p in method.projectors)
    for projector in method.projectors:  # Xavier: uniform within sqrt(6 / (fan in + fan out))
        bound = math.sqrt(6 / (2 * projector.in_channels))
        assert 0.8 * bound < projector.weight.abs().max() <= bound


def test_larger_maps_are_pooled_to_the_smaller():
    method = feature_kd([2], [2], beta=0.0)
    with torch.no_grad():
        method.projectors[0].weight.copy_(torch.eye(2)[:, :, None, None])
    small = torch.randn(3, 2, 4, 4)
    large = small.repeat_interleave(2, 2).repeat_interleave(2, 3)
    student, teacher = Answer(torch.zeros(3, 2), (small,)), Answer(torch.zeros(3, 2), (large,))
    assert method(student, teacher, NOTHING)["kd"].item() == pytest.approx(0.0, abs=1e-12)
    assert method(teacher, student, NOTHING)["kd"].item() == pytest.approx(0.0, abs=1e-12)
