"""Mean-teacher self-distillation on images with few labels.

The teacher is an exponential moving average of the student and is run in eval mode;
the student matches its predictions on strongly augmented unlabelled images.
"""
import copy

import torch
from torch import nn
import torch.nn.functional as F

CLASSES, SIDE = 5, 12


class EmaTeacher:
    def __init__(self, student, decay):
        self.module = copy.deepcopy(student).eval()
        self.module.requires_grad_(False)
        self.decay = decay

    @torch.no_grad()
    def update(self, student):
        for t, s in zip(self.module.parameters(), student.parameters()):
            t.lerp_(s, 1 - self.decay)

    @torch.no_grad()
    def __call__(self, x):
        return self.module(x)


def small_net():
    return nn.Sequential(
        nn.Conv2d(1, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(12, 24, 3, padding=1, bias=False), nn.BatchNorm2d(24), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(96, CLASSES))


class BlobImages:
    """Greyscale images (pixel range 0..255) of a smooth class template plus noise."""

    def __init__(self, seed):
        g = torch.Generator().manual_seed(seed)
        coarse = torch.randn(CLASSES, 1, 4, 4, generator=g)
        self.templates = F.interpolate(coarse, SIDE, mode="bilinear")
        self.g = g

    def draw(self, n):
        y = torch.randint(0, CLASSES, (n,), generator=self.g)
        noise = torch.randn(n, 1, SIDE, SIDE, generator=self.g)
        return ((self.templates[y] + 1.3 * noise) * 40 + 128).clamp(0, 255) / 255 * 4, y


def weak(x, g):
    return x + 0.05 * torch.randn(x.shape, generator=g)


def strong(x, g):
    x = x + 0.4 * torch.randn(x.shape, generator=g)
    keep = (torch.rand(x.size(0), 1, 3, 3, generator=g) > 0.15).float()
    return x * F.interpolate(keep, SIDE, mode="nearest")


def rampup(step, length, top):
    t = min(step / length, 1.0)
    return top * float(torch.exp(torch.tensor(-5.0 * (1 - t) ** 2)))


@torch.no_grad()
def accuracy(net, x, y):
    was_training = net.training
    net.eval()
    acc = (net(x).argmax(1) == y).float().mean().item()
    net.train(was_training)
    return acc


class Trainer:
    def __init__(self, seed=0):
        torch.manual_seed(seed)
        data = BlobImages(21)
        self.labelled, self.unlabelled, self.test = data.draw(25), data.draw(600), data.draw(400)
        self.g = torch.Generator().manual_seed(seed + 1)
        self.student = small_net()
        self.teacher = EmaTeacher(self.student, decay=0.95)
        self.opt = torch.optim.SGD(self.student.parameters(), lr=0.03, momentum=0.9, nesterov=True)

    def step(self, step):
        x_l, y_l = self.labelled
        pick = torch.randint(0, len(self.unlabelled[0]), (50,), generator=self.g)
        x_u = self.unlabelled[0][pick]
        logits = self.student(torch.cat([weak(x_l, self.g), strong(x_u, self.g)]))
        supervised = F.cross_entropy(logits[:len(x_l)], y_l)
        target = self.teacher(weak(x_u, self.g)).softmax(-1)
        consistency = -(target * logits[len(x_l):].log_softmax(-1)).sum(-1).mean()
        loss = supervised + rampup(step, 50, 2.0) * consistency
        self.opt.zero_grad(set_to_none=True)
        loss.backward()
        self.opt.step()
        self.teacher.update(self.student)
        return supervised.item(), consistency.item()

    def fit(self, steps=130):
        for step in range(1, steps + 1):
            sup, con = self.step(step)
            if step % 26 == 0:
                print(f"step {step:3d} sup {sup:.3f} cons {con:.3f} "
                      f"student {accuracy(self.student, *self.test):.3f} "
                      f"teacher {accuracy(self.teacher.module, *self.test):.3f}")


if __name__ == "__main__":
    Trainer().fit()
