"""Dense depth regression, mixed precision, with a bigger depth net as a second source of targets."""
from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F

torch.manual_seed(5)


@dataclass
class TrainConfig:
    steps: int = 100
    batch: int = 8
    lr: float = 0.05
    grad_clip: float = 1.0
    mimic: float = 0.6
    amp_dtype: torch.dtype = torch.bfloat16


def rooms(n, g):
    """Brightness falls with distance; the depth is a tilted plane with a nearer box."""
    r = torch.linspace(0, 1, 16)
    slope = torch.rand(n, 2, 1, 1, generator=g)
    depth = 1 + slope[:, 0] * r.view(1, 16, 1) + slope[:, 1] * r.view(1, 1, 16)
    for i in range(n):
        y, x = torch.randint(0, 10, (2,), generator=g).tolist()
        depth[i, y:y + 6, x:x + 6] *= 0.5
    albedo = 0.8 + 0.4 * torch.rand(n, 3, 1, 1, generator=g)
    img = albedo / depth.unsqueeze(1) + 0.1 * torch.randn(n, 3, 16, 16, generator=g)
    return img, depth.unsqueeze(1)


def depth_net(w, layers):
    mods = [nn.Conv2d(3, w, 3, padding=1), nn.GroupNorm(2, w), nn.ReLU()]
    for _ in range(layers):
        mods += [nn.Conv2d(w, w, 3, padding=1), nn.GroupNorm(2, w), nn.ReLU()]
    return nn.Sequential(*mods, nn.Conv2d(w, 1, 1), nn.Softplus())


def scale_invariant(pred, target):
    d = pred.float().clamp(min=1e-3).log() - target.float().clamp(min=1e-3).log()
    return (d ** 2).mean() - 0.5 * d.flatten(1).mean(1).pow(2).mean()


class DepthTrainer:
    def __init__(self, net, mentor=None, cfg=None):
        self.net, self.mentor, self.cfg = net, mentor, cfg or TrainConfig()
        self.opt = torch.optim.SGD(net.parameters(), lr=self.cfg.lr, momentum=0.9)
        self.scaler = torch.amp.GradScaler("cpu", init_scale=2.0 ** 14)
        if mentor is not None:
            mentor.eval().requires_grad_(False)

    def loss(self, img, depth):
        with torch.autocast("cpu", dtype=self.cfg.amp_dtype):
            pred = self.net(img)
            ref = None
            if self.mentor is not None:
                with torch.no_grad():
                    ref = self.mentor(img)
        total = scale_invariant(pred, depth) + 0.1 * F.l1_loss(pred.float(), depth)
        if ref is not None:
            total = (1 - self.cfg.mimic) * total + self.cfg.mimic * F.smooth_l1_loss(pred.float(), ref.float())
        return total

    def step(self, img, depth):
        self.opt.zero_grad(set_to_none=True)
        loss = self.loss(img, depth)
        self.scaler.scale(loss).backward()
        nn.utils.clip_grad_norm_(self.net.parameters(), self.cfg.grad_clip)
        self.scaler.step(self.opt)
        self.scaler.update()
        return loss.item()

    def fit(self, gen):
        self.net.train()
        for i in range(self.cfg.steps):
            loss = self.step(*rooms(self.cfg.batch, gen))
            if i % 30 == 0:
                print(f"  step {i} loss {loss:.4f}")
        return self.net


@torch.no_grad()
def abs_rel(net):
    net.eval()
    img, depth = rooms(200, torch.Generator().manual_seed(404))
    return ((net(img) - depth).abs() / depth).mean().item()


def pretrain(net, gen, steps=150):
    opt = torch.optim.Adam(net.parameters(), lr=5e-3)
    net.train()
    for _ in range(steps):
        img, depth = rooms(16, gen)
        opt.zero_grad()
        F.smooth_l1_loss(net(img), depth).backward()
        opt.step()
    return net


gen = torch.Generator().manual_seed(6)
mentor = pretrain(depth_net(16, 2), gen)
print(f"mentor abs rel {abs_rel(mentor):.4f}")
compact = depth_net(6, 1)
print(f"compact before {abs_rel(compact):.4f}")
DepthTrainer(compact, mentor).fit(gen)
print(f"compact after {abs_rel(compact):.4f}")
