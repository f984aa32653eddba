"""Semi-supervised mean teacher on 1-D sensor signals.

After a short supervised warm-up the averaged teacher is cloned from the student;
it runs in eval mode on a weakly perturbed view and gives soft targets for the
strongly perturbed view that the student sees.  (Teacher = average, same size.)
"""
import copy
import math

import torch
import torch.nn.functional as F
from torch import nn


def signals(n, gen):
    y = torch.randint(0, 5, (n,), generator=gen)
    t = torch.linspace(0, 1, 64)
    phase = torch.rand(n, 1, generator=gen) * 2 * math.pi
    freq = (2.0 + 1.5 * y[:, None]) * (1 + 0.08 * torch.randn(n, 1, generator=gen))
    wave = torch.sin(2 * math.pi * freq * t + phase)
    gain = 0.5 + 1.5 * torch.rand(n, 1, generator=gen)
    return (gain * wave + 0.4 * torch.randn(n, 64, generator=gen)).unsqueeze(1), y


def conv_net():
    def stage(i, o):
        return nn.Sequential(nn.Conv1d(i, o, 7, stride=2, padding=3), nn.BatchNorm1d(o), nn.ReLU())
    return nn.Sequential(stage(1, 24), stage(24, 32), stage(32, 32),
                         nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(32, 5))


class AveragedTeacher:
    def __init__(self, student, decay):
        self.net = copy.deepcopy(student).eval().requires_grad_(False)
        self.decay = decay

    @torch.no_grad()
    def update(self, student):
        for avg, cur in zip(self.net.parameters(), student.parameters()):
            avg.lerp_(cur, 1.0 - self.decay)

    @torch.no_grad()
    def __call__(self, x):
        return self.net(x)


def weak(x, gen):
    return x + 0.05 * torch.randn(x.shape, generator=gen)


def strong(x, gen):
    keep = (torch.rand(x.shape, generator=gen) > 0.2).float()
    return (x + 0.3 * torch.randn(x.shape, generator=gen)) * keep


@torch.no_grad()
def accuracy(net, x, y):
    was = net.training
    net.eval()
    acc = (net(x).argmax(1) == y).float().mean().item()
    net.train(was)
    return acc


def ramp(step, length):
    return math.exp(-5.0 * (1.0 - min(step / length, 1.0)) ** 2)


def main():
    torch.manual_seed(2)
    gen = torch.Generator().manual_seed(2)
    x_lab, y_lab = signals(60, gen)
    x_unl, _ = signals(3000, gen)
    x_test, y_test = signals(1500, gen)

    student = conv_net()
    opt = torch.optim.SGD(student.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4)
    student.train()
    for _ in range(25):
        pick = torch.randint(0, 60, (30,), generator=gen)
        opt.zero_grad()
        F.cross_entropy(student(weak(x_lab[pick], gen)), y_lab[pick]).backward()
        opt.step()
    teacher = AveragedTeacher(student, decay=0.95)
    print(f"after warm-up: {accuracy(student, x_test, y_test):.3f}")

    for step in range(150):
        lab = torch.randint(0, 60, (24,), generator=gen)
        unl = torch.randint(0, 3000, (72,), generator=gen)
        soft = F.softmax(teacher(weak(x_unl[unl], gen)), 1)
        logits = student(torch.cat([weak(x_lab[lab], gen), strong(x_unl[unl], gen)]))
        sup, con = logits.split([24, 72])
        ce = F.cross_entropy(sup, y_lab[lab])
        consistency = F.kl_div(F.log_softmax(con, 1), soft, reduction="batchmean")
        loss = ce + 1.0 * ramp(step, 50) * consistency
        opt.zero_grad()
        loss.backward()
        opt.step()
        teacher.update(student)
        if step % 30 == 29:
            print(f"step {step + 1}: ce {ce.item():.3f} consistency {consistency.item():.3f} "
                  f"student {accuracy(student, x_test, y_test):.3f} "
                  f"teacher {accuracy(teacher.net, x_test, y_test):.3f}")


if __name__ == "__main__":
    main()
