"""Image distillation with a teacher that looks at a larger picture.

Both networks see the same augmented crop, the student at half resolution. The
temperature falls from 6 to 2 and the distillation weight warms up over 30 steps.
"""
import math

import torch
import torch.nn as nn
import torch.nn.functional as F

CLASSES = 6


def convnet(width, depth):
    layers, cin = [], 3
    for _ in range(depth):
        layers += [nn.Conv2d(cin, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        cin = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, CLASSES))


class Photos:
    def __init__(self):
        g = torch.Generator().manual_seed(3)
        self.proto = F.interpolate(torch.randn(CLASSES, 3, 7, 7, generator=g), 28, mode="bilinear")

    def draw(self, n):
        y = torch.randint(0, CLASSES, (n,))
        return self.proto[y] + 1.0 * torch.randn(n, 3, 28, 28), y


def augment(x):
    """One random 24x24 crop and one flip for the whole batch."""
    dy, dx = torch.randint(0, 5, (2,)).tolist()
    x = x[:, :, dy:dy + 24, dx:dx + 24]
    return x.flip(-1) if torch.rand(()) < 0.3 else x


def center(x):
    return x[:, :, 2:26, 2:26]


def half(x):
    return F.avg_pool2d(x, 2)


class Plan:
    def __init__(self, total, warmup, tau=(6.0, 2.0), weight=0.9):
        self.total, self.warmup, self.tau, self.weight = total, warmup, tau, weight

    def temperature(self, step):
        hi, lo = self.tau
        return lo + (hi - lo) * 0.5 * (1 + math.cos(math.pi * step / self.total))

    def kd_weight(self, step):
        return self.weight * min(1.0, (step + 1) / self.warmup)


@torch.no_grad()
def accuracy(net, view, x, y):
    mode = net.training
    net.eval()
    acc = (net(view(center(x))).argmax(1) == y).float().mean().item()
    net.train(mode)
    return acc


def main():
    torch.manual_seed(0)
    photos = Photos()
    test = photos.draw(300)
    teacher = convnet(20, 3)
    opt = torch.optim.Adam(teacher.parameters(), lr=4e-3)
    for _ in range(60):
        x, y = photos.draw(32)
        loss = F.cross_entropy(teacher(augment(x)), y)
        opt.zero_grad()
        loss.backward()
        opt.step()
    teacher.eval()
    print(f"teacher accuracy {accuracy(teacher, lambda v: v, *test):.3f}")

    student, plan = convnet(8, 2), Plan(total=90, warmup=30)
    opt = torch.optim.SGD(student.parameters(), lr=0.05, momentum=0.9)
    for step in range(plan.total):
        x, y = photos.draw(32)
        x = augment(x)
        tau, w = plan.temperature(step), plan.kd_weight(step)
        with torch.no_grad():
            soft = (teacher(x) / tau).softmax(1)
        logits = student(half(x))
        kd = F.kl_div((logits / tau).log_softmax(1), soft, reduction="batchmean") * tau * tau
        loss = w * kd + (1 - w) * F.cross_entropy(logits, y)
        opt.zero_grad()
        loss.backward()
        opt.step()
        if step % 30 == 29:
            print(f"step {step + 1} tau {tau:.2f} weight {w:.2f} kd {kd.item():.3f} "
                  f"student accuracy {accuracy(student, half, *test):.3f}")


if __name__ == "__main__":
    main()
