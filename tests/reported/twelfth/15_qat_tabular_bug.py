"""Quantisation-aware distillation for tabular classification.

A float network teaches a copy of itself whose hidden layers run with 2-bit weights;
straight-through gradients train the float weights behind the quantiser.
"""
import copy

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F


class RoundSTE(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.round()

    @staticmethod
    def backward(ctx, grad):
        return grad


class QuantLinear(nn.Linear):
    """Linear layer with symmetric per-row fake quantisation of the weight."""

    bits = 2

    @classmethod
    def from_float(cls, linear):
        layer = cls(linear.in_features, linear.out_features)
        layer.load_state_dict(linear.state_dict())
        return layer

    def quantised(self):
        top = 2 ** (self.bits - 1) - 1
        scale = self.weight.detach().abs().amax(1, keepdim=True).clamp(min=1e-8) / top
        return RoundSTE.apply(self.weight / scale).clamp(-top - 1, top) * scale

    def forward(self, x):
        return F.linear(x, self.quantised(), self.bias)


def prepare(model, keep=("out",)):
    """Swap every Linear, except the named ones, for its quantised version."""
    for name, child in model.named_children():
        if isinstance(child, nn.Linear) and name not in keep:
            setattr(model, name, QuantLinear.from_float(child))
        else:
            prepare(child, keep)
    return model


class TabNet(nn.Module):
    def __init__(self, n_in, n_out, width=40):
        super().__init__()
        self.inp = nn.Linear(n_in, width)
        self.hidden = nn.Sequential(nn.ReLU(), nn.Linear(width, width), nn.ReLU(),
                                    nn.Linear(width, width), nn.ReLU())
        self.out = nn.Linear(width, n_out)

    def forward(self, x):
        return self.out(self.hidden(self.inp(x)))


def make_table(n, seed):
    rng = np.random.default_rng(seed)
    num = rng.normal(size=(n, 8))
    cat = rng.integers(0, 4, n)
    score = np.stack([num[:, 0] * num[:, 1] + num[:, 2], np.sin(2 * num[:, 3]) + num[:, 4] * (cat == 1),
                      np.abs(num[:, 5]) - 0.5 + 0.7 * (cat == 2)], 1)
    y = (score + 0.15 * rng.normal(size=score.shape)).argmax(1)
    x = np.concatenate([num, np.eye(4)[cat]], 1).astype(np.float32)
    return torch.from_numpy(x), torch.from_numpy(y)


@torch.no_grad()
def score(model, data):
    x, y = data
    return (model(x).argmax(1) == y).float().mean().item()


def fit_float(data, steps=250):
    model = TabNet(12, 3)
    opt = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(steps):
        pick = torch.randint(0, len(data[1]), (128,))
        loss = F.cross_entropy(model(data[0][pick]), data[1][pick])
        opt.zero_grad()
        loss.backward()
        opt.step()
    return model


def distil(teacher, student, optimizer, x, steps, tau=2.0):
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=4e-3, total_steps=steps)
    for step in range(1, steps + 1):
        rows = x[torch.randint(0, len(x), (128,))]
        with torch.no_grad():
            soft = (teacher(rows) / tau).softmax(-1)
        loss = F.kl_div((student(rows) / tau).log_softmax(-1), soft, reduction="batchmean") * tau ** 2
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 40 == 0:
            print(f"step {step} lr {schedule.get_last_lr()[0]:.5f} kl {loss.item():.4f}")


def main():
    torch.manual_seed(0)
    train, test = make_table(3000, 1), make_table(1500, 2)
    teacher = fit_float(train).eval()
    print(f"float accuracy {score(teacher, test):.3f}")

    student = copy.deepcopy(teacher).train()
    optimizer = torch.optim.Adam(student.parameters(), lr=1e-3)
    student = prepare(student)
    print(f"2-bit accuracy {score(student, test):.3f} before distillation")
    distil(teacher, student, optimizer, train[0], steps=160)
    print(f"2-bit accuracy {score(student, test):.3f} after distillation")


if __name__ == "__main__":
    main()
