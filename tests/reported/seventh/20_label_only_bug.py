"""Label-only distillation: copy a black-box classifier through the labels it returns."""
from collections import namedtuple
import torch
import torch.nn as nn
import torch.nn.functional as F

Split = namedtuple("Split", "x y")
torch.manual_seed(20)
torch.set_num_threads(1)
gen = torch.Generator().manual_seed(20)
W = torch.randn(14, 4, generator=gen)


def census(n, flip):
    x = torch.randn(n, 14, generator=gen)
    y = (torch.sin(1.5 * x) @ W).argmax(1)
    noise = torch.rand(n, generator=gen) < flip
    return Split(x, torch.where(noise, torch.randint(0, 4, (n,), generator=gen), y))


def mlp(*widths):
    layers = []
    for a, b in zip(widths, widths[1:]):
        layers += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class BlackBox:
    """the attacked model; answers with a class id only"""

    def __init__(self, net):
        self.net = net.eval().requires_grad_(False)

    @torch.no_grad()
    def __call__(self, x):
        return self.net(x).argmax(1)


class DistillationModelHandler:
    def __init__(self, box, student, lr=3e-3):
        self.box, self.student = box, student
        self.opt = torch.optim.Adam(student.parameters(), lr=lr)
        self.loss_fn = nn.CrossEntropyLoss()
        self.trajectory = []

    def epoch(self, aux, batch=64):
        self.student.train()
        total, agree, hits = 0.0, 0, 0
        for idx in torch.randperm(len(aux.x), generator=gen).split(batch):
            x, y = aux.x[idx], aux.y[idx]
            teacher_label = self.box(x)
            out = self.student(x)
            loss = self.loss_fn(out, y)
            self.opt.zero_grad()
            loss.backward()
            self.opt.step()
            total += loss.item() * len(idx)
            agree += (out.argmax(1) == teacher_label).sum().item()
            hits += (out.argmax(1) == y).sum().item()
        return total / len(aux.x), agree / len(aux.x), hits / len(aux.x)

    @torch.no_grad()
    def record(self, audit):
        """per-sample loss on the audit points, one column per checkpoint"""
        self.student.eval()
        self.trajectory.append(F.cross_entropy(self.student(audit.x), audit.y, reduction="none"))

    @torch.no_grad()
    def fidelity(self, x):
        return (self.student.eval()(x).argmax(1) == self.box(x)).float().mean().item()


private, aux, audit = census(600, 0.0), census(3000, 0.45), census(1000, 0.0)
target = mlp(14, 96, 96, 4)
opt = torch.optim.Adam(target.parameters(), lr=3e-3)
for _ in range(60):
    for idx in torch.randperm(len(private.x), generator=gen).split(64):
        opt.zero_grad()
        F.cross_entropy(target(private.x[idx]), private.y[idx]).backward()
        opt.step()
handler = DistillationModelHandler(BlackBox(target), mlp(14, 64, 64, 4))
for epoch in range(21):
    loss, agree, hits = handler.epoch(aux)
    handler.record(audit)
    if epoch % 3 == 2:
        print(f"epoch {epoch} loss {loss:.4f} agreement {agree:.3f} data acc {hits:.3f} fidelity {handler.fidelity(audit.x):.3f}")
print("trajectory", tuple(torch.stack(handler.trajectory, 1).shape),
      "final mean loss", round(handler.trajectory[-1].mean().item(), 4))
