"""Everything by hand: softmax with temperature, KL divergence, gradient clipping, learning-rate decay."""

import torch
import torch.nn as nn

torch.manual_seed(99)
K, D, B = 5, 40, 50


def log_p(logits, temperature):
    z = logits / temperature
    return z - torch.logsumexp(z, dim=1, keepdim=True)


def kl(teacher_logits, student_logits, temperature):
    lt = log_p(teacher_logits, temperature)
    ls = log_p(student_logits, temperature)
    per_sample = (lt.exp() * (lt - ls)).sum(dim=1)
    return per_sample.mean() * temperature**2


def nll(logits, labels):
    return -log_p(logits, 1.0)[torch.arange(len(labels)), labels].mean()


def clip(parameters, limit):
    grads = [p.grad for p in parameters if p.grad is not None]
    total = torch.sqrt(sum((g**2).sum() for g in grads))
    factor = min(1.0, limit / (total.item() + 1e-6))
    for g in grads:
        g.mul_(factor)


class Branchy(nn.Module):
    """Two tanh branches of different widths, concatenated; returns logits and features."""

    def __init__(self, a, b, drop=0.0):
        super().__init__()
        self.left = nn.Sequential(nn.Linear(D, a), nn.BatchNorm1d(a), nn.Tanh())
        self.right = nn.Sequential(nn.Linear(D, b), nn.ReLU(), nn.Dropout(drop))
        self.out = nn.Linear(a + b, K)

    def forward(self, x):
        h = torch.cat((self.left(x), self.right(x)), dim=1)
        return self.out(h), h


means = 0.9 * torch.randn(K, D)


def data(n):
    y = torch.randint(0, K, (n,))
    return means[y] + 1.4 * torch.randn(n, D), y


def acc(model, x, y):
    model.eval()
    with torch.no_grad():
        logits, _ = model(x)
    return float((logits.argmax(1) == y).float().mean())


x_train, y_train = data(1500)
x_test, y_test = data(500)

teacher = Branchy(96, 96, drop=0.2)
opt = torch.optim.RMSprop(teacher.parameters(), lr=1e-3)
for _ in range(80):
    pick = torch.randint(0, len(x_train), (B,))
    opt.zero_grad()
    nll(teacher(x_train[pick])[0], y_train[pick]).backward()
    opt.step()
print("teacher", acc(teacher, x_train, y_train), acc(teacher, x_test, y_test))

student = Branchy(12, 12, drop=0.1)
align = nn.Linear(24, 192, bias=False)
trained = list(student.parameters()) + list(align.parameters())
opt = torch.optim.SGD(trained, lr=0.1, momentum=0.9)
teacher.eval()
student.train()
for step in range(120):
    for group in opt.param_groups:
        group["lr"] = 0.1 * (1 - step / 120)
    pick = torch.randint(0, len(x_train), (B,))
    x, y = x_train[pick], y_train[pick]
    with torch.no_grad():
        t_logits, t_feat = teacher(x)
    s_logits, s_feat = student(x)
    soft = kl(t_logits, s_logits, 3.0)
    feat = (align(s_feat) - t_feat).pow(2).mean()
    total = 0.5 * nll(s_logits, y) + 0.5 * soft + 0.1 * feat
    for p in trained:
        p.grad = None
    total.backward()
    clip(trained, 2.0)
    opt.step()
print("student", acc(student, x_test, y_test))
