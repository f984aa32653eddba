"""Tabular classification with scarce, noisy labels: a wide MLP teaches a narrow
one with the generalized Jensen-Shannon divergence (weight `beta` on the teacher)
at a raised temperature, next to a small cross-entropy term.
"""
import argparse
import math

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

parser = argparse.ArgumentParser()
parser.add_argument("--beta", type=float, default=0.3)
parser.add_argument("--tau", type=float, default=2.0)
parser.add_argument("--ce-weight", type=float, default=0.1)
parser.add_argument("--lr", type=float, default=0.1)
parser.add_argument("--epochs", type=int, default=6)
args = parser.parse_args()

torch.manual_seed(7)
CLASSES, DIM = 8, 20
centres = torch.randn(CLASSES, DIM) * 0.9
warp = torch.randn(DIM, DIM) / DIM ** 0.5


def draw(n, noise):
    y = torch.randint(0, CLASSES, (n,))
    x = torch.tanh((centres[y] + torch.randn(n, DIM)) @ warp)
    y_seen = torch.where(torch.rand(n) < noise, torch.randint(0, CLASSES, (n,)), y)
    return x, y_seen


def mlp(width, depth):
    layers, d = [], DIM
    for _ in range(depth):
        layers += [nn.Linear(d, width), nn.ReLU()]
        d = width
    return nn.Sequential(*layers, nn.Linear(d, CLASSES))


def generalized_jsd(student_logits, teacher_logits, beta, tau):
    """beta * KL(p || m) + (1 - beta) * KL(q || m),  m = beta * p + (1 - beta) * q."""
    zq, zp = student_logits / tau, teacher_logits / tau
    log_q = zq - zq.logsumexp(-1, keepdim=True)
    log_p = zp - zp.logsumexp(-1, keepdim=True)
    log_m = torch.logaddexp(log_p + math.log(beta), log_q + math.log1p(-beta))
    with torch.no_grad():
        p, q = log_p.exp(), log_q.exp()
    kl_pm = torch.einsum("bc,bc->b", p, log_p - log_m)
    kl_qm = torch.einsum("bc,bc->b", q, log_q - log_m)
    return (beta * kl_pm + (1 - beta) * kl_qm).mean() * tau ** 2


@torch.no_grad()
def evaluate(net, x, y):
    return (net(x).argmax(-1) == y).float().mean().item()


x_teach, y_teach = draw(4000, 0.05)
x_stud, y_stud = draw(1280, 0.6)
x_test, y_test = draw(2000, 0.0)

teacher = mlp(128, 2)
optim = torch.optim.Adam(teacher.parameters(), lr=2e-3, weight_decay=1e-4)
for epoch in range(4):
    for xb, yb in DataLoader(TensorDataset(x_teach, y_teach), 64, shuffle=True):
        optim.zero_grad()
        nn.functional.cross_entropy(teacher(xb), yb).backward()
        optim.step()
teacher.eval()
teacher.requires_grad_(False)
print(f"teacher accuracy: {evaluate(teacher, x_test, y_test):.3f}")

student = mlp(24, 1)
optim = torch.optim.SGD(student.parameters(), lr=args.lr, momentum=0.9)
loader = DataLoader(TensorDataset(x_stud, y_stud), 64, shuffle=True, drop_last=True)
sched = torch.optim.lr_scheduler.CosineAnnealingLR(optim, args.epochs * len(loader))
for epoch in range(args.epochs):
    running = 0.0
    for xb, yb in loader:
        with torch.no_grad():
            t_logits = teacher(xb)
        s_logits = student(xb)
        jsd = generalized_jsd(s_logits, t_logits, args.beta, args.tau)
        ce = nn.functional.cross_entropy(s_logits, yb)
        loss = (1 - args.ce_weight) * jsd + args.ce_weight * ce
        optim.zero_grad()
        loss.backward()
        optim.step()
        sched.step()
        running += jsd.item()
    print(f"epoch {epoch}: jsd {running / len(loader):.4f}, ce {ce.item():.3f}")

student.eval()
with torch.no_grad():
    agree = (student(x_test).argmax(-1) == teacher(x_test).argmax(-1)).float().mean().item()
    final = generalized_jsd(student(x_test), teacher(x_test), args.beta, args.tau).item()
print(f"student accuracy: {evaluate(student, x_test, y_test):.3f}")
print(f"agreement with teacher: {agree:.3f}, test jsd: {final:.4f}")
