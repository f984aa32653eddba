"""The criterion is a module of its own: it owns two projectors and learnable weights of the loss terms."""

import itertools
import math

import torch
import torch.nn as nn
import torch.nn.functional as F

torch.manual_seed(55)
NUM_CLASSES = 6
EPOCHS, BATCH, LR = 5, 64, 4e-3


class Pyramid(nn.Module):
    def __init__(self, *widths):
        super().__init__()
        self.stages = nn.ModuleList()
        for a, b in itertools.pairwise((3, *widths)):
            self.stages.append(nn.Sequential(nn.Conv2d(a, b, 3, 2, 1), nn.BatchNorm2d(b), nn.SiLU()))
        self.top = nn.Linear(widths[-1], NUM_CLASSES)

    def forward(self, x):
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return {"logits": self.top(x.mean((2, 3))), "maps": maps}


class MultiTermLoss(nn.Module):
    """Uncertainty weighting: exp(-s) * term + s, one s for each term."""

    def __init__(self, student_widths, teacher_widths, tau=4.0):
        super().__init__()
        pairs = zip(student_widths, teacher_widths)
        self.projectors = nn.ModuleList(nn.Conv2d(s, t, 1, bias=False) for s, t in pairs)
        self.log_vars = nn.Parameter(torch.zeros(2))
        self.tau = tau

    def feature_term(self, s_maps, t_maps):
        per_stage = [F.smooth_l1_loss(p(s), t) for p, s, t in zip(self.projectors, s_maps, t_maps)]
        return torch.stack(per_stage).mean()

    def forward(self, s, t, target):
        label = F.cross_entropy(s["logits"], target)
        log_q = F.log_softmax(s["logits"] / self.tau, dim=1)
        log_p = F.log_softmax(t["logits"] / self.tau, dim=1)
        soft = self.tau**2 * F.kl_div(log_q, log_p, log_target=True, reduction="batchmean")
        feature = self.feature_term(s["maps"], t["maps"])
        weights = torch.exp(-self.log_vars)
        return label + weights[0] * soft + weights[1] * feature + self.log_vars.sum()


def images(n, colours):
    y = torch.randint(NUM_CLASSES, (n,))
    return colours[y] + 1.2 * torch.randn(n, 3, 16, 16), y


@torch.no_grad()
def evaluate(net, x, y):
    net.eval()
    return (net(x)["logits"].argmax(1) == y).float().mean().item()


def epoch_batches(x, y):
    for idx in torch.randperm(len(x)).split(BATCH):
        yield x[idx], y[idx]


colours = F.interpolate(torch.randn(NUM_CLASSES, 3, 4, 4), scale_factor=4)
x_train, y_train = images(640, colours)
x_test, y_test = images(240, colours)

teacher = Pyramid(16, 32)
optimizer = torch.optim.Adam(teacher.parameters(), lr=5e-3)
for _ in range(4):
    teacher.train()
    for x, y in epoch_batches(x_train, y_train):
        optimizer.zero_grad()
        F.cross_entropy(teacher(x)["logits"], y).backward()
        optimizer.step()
print(f"teacher {evaluate(teacher, x_test, y_test):.3f}")
teacher.eval()

student = Pyramid(8, 16)
criterion = MultiTermLoss((8, 16), (16, 32))
trainable = [*student.parameters(), *criterion.parameters()]
groups = [{"params": list(student.parameters())}, {"params": list(criterion.parameters()), "weight_decay": 0.0}]
optimizer = torch.optim.AdamW(groups, lr=LR, weight_decay=1e-2)
for epoch in range(EPOCHS):
    for group in optimizer.param_groups:
        group["lr"] = LR * 0.5 * (1 + math.cos(math.pi * epoch / EPOCHS))
    student.train()
    for x, y in epoch_batches(x_train, y_train):
        with torch.no_grad():
            reference = teacher(x)
        loss = criterion(student(x), reference, y)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(trainable, 1.0)
        optimizer.step()
    print(f"epoch {epoch} loss {loss.item():.3f} weights {torch.exp(-criterion.log_vars).tolist()}")
print(f"student {evaluate(student, x_test, y_test):.3f}")
