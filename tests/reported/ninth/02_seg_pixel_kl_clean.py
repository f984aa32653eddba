import argparse

import torch
from torch import nn
from torch.nn import functional as F


def parse():
    p = argparse.ArgumentParser()
    p.add_argument("--classes", type=int, default=4)
    p.add_argument("--size", type=int, default=24)
    p.add_argument("--bs", type=int, default=16)
    p.add_argument("--tea-steps", type=int, default=90)
    p.add_argument("--steps", type=int, default=70)
    p.add_argument("--tau", type=float, default=2.0)
    p.add_argument("--kd", type=float, default=1.0)
    p.add_argument("--seed", type=int, default=3)
    return p.parse_args()


def scene(a, n):
    """random half planes and discs, painted with class-dependent texture"""
    s = a.size
    yy, xx = torch.meshgrid(torch.arange(s), torch.arange(s), indexing="ij")
    lab = torch.zeros(n, s, s, dtype=torch.long)
    for i in range(n):
        k = torch.rand(2) * 2 - 1
        lab[i][(k[0] * (xx - s / 2) + k[1] * (yy - s / 2)) > 0] = 1
        for c in range(2, a.classes):
            cx, cy = torch.randint(3, s - 3, (2,)).tolist()
            r = 3 + 3 * torch.rand(1).item()
            lab[i][(xx - cx) ** 2 + (yy - cy) ** 2 < r * r] = c
    base = torch.tensor([[0.3, 0.3], [0.3, 0.7], [0.7, 0.3], [0.7, 0.7]])[lab]
    img = base.permute(0, 3, 1, 2) + 0.35 * torch.randn(n, 2, s, s)
    return img, lab


def build_tea(a):
    return nn.Sequential(
        nn.Conv2d(2, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
        nn.Conv2d(32, 32, 3, stride=2, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
        nn.Conv2d(32, 32, 3, padding=2, dilation=2), nn.BatchNorm2d(32), nn.ReLU(),
        nn.Conv2d(32, a.classes, 1))


def build_stu(a):
    return nn.Sequential(
        nn.Conv2d(2, 12, 3, stride=2, padding=1), nn.ReLU(),
        nn.Conv2d(12, 16, 3, stride=2, padding=1), nn.ReLU(),
        nn.Conv2d(16, a.classes, 1))


def up(z, size):
    return F.interpolate(z, size=size, mode="bilinear", align_corners=False)


def flat(z):
    return z.permute(0, 2, 3, 1).reshape(-1, z.shape[1])


def pixel_kl(stu_map, tea_map, tau):
    tea_map = up(tea_map, stu_map.shape[-2:])
    log_q = F.log_softmax(flat(stu_map) / tau, dim=-1)
    p = F.softmax(flat(tea_map) / tau, dim=-1)
    return tau ** 2 * F.kl_div(log_q, p, reduction="batchmean")


@torch.no_grad()
def evaluate(net, a):
    g = torch.random.get_rng_state()
    torch.manual_seed(77)
    img, lab = scene(a, 64)
    torch.random.set_rng_state(g)
    net.eval()
    pred = up(net(img), lab.shape[-2:]).argmax(1)
    ious = []
    for c in range(a.classes):
        inter = ((pred == c) & (lab == c)).sum().item()
        union = ((pred == c) | (lab == c)).sum().item()
        ious.append(inter / max(union, 1))
    return sum(ious) / len(ious)


def main():
    a = parse()
    torch.manual_seed(a.seed)
    tea = build_tea(a)
    opt = torch.optim.Adam(tea.parameters(), lr=4e-3)
    for _ in range(a.tea_steps):
        img, lab = scene(a, a.bs)
        loss = F.cross_entropy(up(tea(img), lab.shape[-2:]), lab)
        opt.zero_grad()
        loss.backward()
        opt.step()
    print(f"teacher mIoU {evaluate(tea, a):.3f}")
    for p in tea.parameters():
        p.requires_grad = False

    torch.manual_seed(a.seed + 1)
    stu = build_stu(a)
    opt = torch.optim.Adam(stu.parameters(), lr=6e-3)
    for step in range(a.steps):
        stu.train()
        img, lab = scene(a, a.bs)
        with torch.no_grad():
            t_map = tea(img)
        s_map = stu(img)
        ce = F.cross_entropy(up(s_map, lab.shape[-2:]), lab)
        kd = pixel_kl(s_map, t_map, a.tau)
        opt.zero_grad()
        (0.5 * ce + a.kd * kd).backward()
        opt.step()
        if (step + 1) % 35 == 0:
            print(f"step {step + 1:3d}  ce {ce.item():.4f}  kd {kd.item():.4f}")
    print(f"student mIoU {evaluate(stu, a):.3f}")


if __name__ == "__main__":
    main()
