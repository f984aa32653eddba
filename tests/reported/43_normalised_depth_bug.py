import argparse
import torch
import torch.nn as nn
import torch.nn.functional as F


class StereoNet(nn.Module):
    """Cost-volume stereo on tiny pairs; returns normalised inverse depth and the aggregated volume."""

    def __init__(self, w, max_disp=6):
        super().__init__()
        self.feat = nn.Sequential(nn.Conv2d(1, w, 3, padding=1), nn.ReLU(), nn.Conv2d(w, w, 3, padding=1))
        self.agg = nn.Conv2d(max_disp, w, 3, padding=1)
        self.out = nn.Conv2d(w, 1, 3, padding=1)
        self.max_disp = max_disp

    def forward(self, left, right):
        l, r = self.feat(left), self.feat(right)
        vol = torch.stack([(l * torch.roll(r, d, -1)).mean(1) for d in range(self.max_disp)], 1)
        vol = F.relu(self.agg(vol))
        return self.out(vol), vol


def pairs(gen, n=8, s=20):
    disp = torch.randint(0, 6, (n, 1, 5, 5), generator=gen).float()
    disp = F.interpolate(disp, size=(s, s), mode="nearest")
    right = torch.randn(n, 1, s, s, generator=gen)
    cols = (torch.arange(s).view(1, 1, 1, s) - disp.long()) % s
    left = right.gather(-1, cols)
    holes = torch.rand(n, 1, s, s, generator=gen) < 0.2
    target = (disp - 2.5) / 1.7
    return left, right, target.masked_fill(holes, 0.0)


def depth_loss(pred, gt):
    mask = (gt > 0).float()
    return ((pred - gt).abs() * mask).sum() / mask.sum().clamp(min=1)


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("--kd-depth", type=float, default=0.5)
    ap.add_argument("--kd-volume", type=float, default=0.5)
    ap.add_argument("--iters", type=int, default=80)
    args = ap.parse_args([])
    torch.manual_seed(43)
    gen = torch.Generator().manual_seed(43)
    teacher, student = StereoNet(16), StereoNet(6)
    adapt = nn.Conv2d(6, 16, 1)
    opt = torch.optim.Adam(teacher.parameters(), lr=5e-3)
    for _ in range(100):
        l, r, gt = pairs(gen)
        valid = gt != 0
        loss = (teacher(l, r)[0] - gt)[valid].abs().mean()
        opt.zero_grad(); loss.backward(); opt.step()
    teacher.eval().requires_grad_(False)
    opt = torch.optim.Adam([*student.parameters(), *adapt.parameters()], lr=5e-3)
    for it in range(args.iters):
        l, r, gt = pairs(gen)
        pred, vol = student(l, r)
        t_pred, t_vol = teacher(l, r)
        hard = depth_loss(pred, gt)
        soft = depth_loss(pred, t_pred)
        loss = hard + args.kd_depth * soft + args.kd_volume * F.mse_loss(adapt(vol), t_vol)
        opt.zero_grad()
        loss.backward()
        opt.step()
        if it % 20 == 0:
            print(f"iter {it} hard {hard.item():.4f} soft {soft.item():.4f}")
    with torch.no_grad():
        l, r, gt = pairs(gen, 50)
        err = (student(l, r)[0] - gt)[gt != 0].abs().mean()
    print(f"mean error on all valid pixels {err.item():.4f}")


if __name__ == "__main__":
    main()
