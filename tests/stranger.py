"""Somebody's distillation loop: knows nothing of kd or harness, and forgets its projector in the clip."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import clip_grad_norm_

from kdbench import audits


def train(forget: bool, seed: int = 0, steps: int = 25, watched: bool = True):
    torch.manual_seed(seed)
    body, head = nn.Sequential(nn.Linear(12, 8), nn.ReLU()), nn.Linear(8, 5)
    student, projector = nn.Sequential(body, head), nn.Linear(8, 16, bias=False)
    t_body, t_head = nn.Sequential(nn.Linear(12, 16), nn.ReLU()), nn.Linear(16, 5)
    teacher = nn.Sequential(t_body, t_head).eval().requires_grad_(False)
    optimizer = torch.optim.SGD([*student.parameters(), *projector.parameters()], lr=0.1, momentum=0.9)
    watch = audits.watch(student=student, teacher=teacher, projectors={"hint": projector}, optimizer=optimizer)
    with watch if watched else torch.enable_grad():
        for _ in range(steps):
            x, y = torch.randn(32, 12), torch.randint(0, 5, (32,))
            hidden, hint = body(x), t_body(x)
            soft = F.kl_div(F.log_softmax(head(hidden), 1), F.softmax(teacher(x), 1), reduction="batchmean")
            loss = F.cross_entropy(head(hidden), y) + soft + F.mse_loss(projector(hidden), hint)
            optimizer.zero_grad()
            loss.backward()
            if forget:
                clip_grad_norm_(student.parameters(), 0.05)
            else:
                clip_grad_norm_([*student.parameters(), *projector.parameters()], 0.05)
            optimizer.step()
    return watch.report, [*student.parameters(), *projector.parameters()]
