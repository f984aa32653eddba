"""A divergence between student and teacher that is computed with its graph, and is in no loss, is named."""

from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import nn

import kdbench


def distil(total, computed=nullcontext):
    torch.manual_seed(0)
    teacher, student, projector = nn.Linear(6, 4), nn.Linear(6, 4), nn.Linear(4, 4)
    teacher.eval().requires_grad_(False)
    optimizer = torch.optim.SGD([*student.parameters(), *projector.parameters()], 0.1)
    with kdbench.watch(
        student=student, teacher=teacher, optimizer=optimizer, projectors=projector, on_fail="record"
    ) as watch:
        for _ in range(12):
            x, y = torch.randn(8, 6), torch.randint(0, 4, (8,))
            with torch.no_grad():
                t = teacher(x)
            s = student(x)
            with computed():
                kd = F.kl_div(F.log_softmax(s / 2, 1), F.softmax(t / 2, 1), reduction="batchmean") * 4
            hint = F.mse_loss(projector(s), t)
            optimizer.zero_grad()
            total(F.cross_entropy(s, y), kd, hint).backward()
            optimizer.step()
    return next(f for f in watch.report.findings if f.id == "KD311")


def test_a_term_that_is_left_out_beside_a_hint_is_named():
    found = distil(lambda ce, kd, hint: ce + hint)
    assert (found.status, found.severity) == ("fail", "warn")
    assert "is in no loss" in found.message and found.where is not None


def test_one_that_is_in_the_loss_passes():
    assert distil(lambda ce, kd, hint: ce + kd + hint).status == "pass"


def test_one_that_is_computed_without_a_gradient_is_for_a_log():
    found = distil(lambda ce, kd, hint: ce + hint, torch.no_grad)
    assert found.status == "pass"
