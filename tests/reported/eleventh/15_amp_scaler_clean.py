"""Mixed-precision feature + logit distillation on the CPU: bf16 autocast, loss
scaling, a 1x1 projector and global-norm clipping over student and projector.
"""
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import nn


@dataclass
class Settings:
    steps: int = 90
    batch: int = 40
    lr: float = 0.1
    clip: float = 1.0
    tau: float = 2.0
    init_scale: float = 4096.0
    weights: dict = field(default_factory=lambda: {"ce": 0.3, "kd": 0.7, "feat": 0.5})


def images(n, gen):
    """Bright bar in one of 6 directions on a noisy background."""
    y = torch.randint(0, 6, (n,), generator=gen)
    axis = torch.linspace(-1, 1, 16)
    angle = y[:, None, None] * torch.pi / 6
    off = 0.3 * torch.randn(n, 1, 1, generator=gen)
    line = axis[None, None, :] * angle.sin() - axis[None, :, None] * angle.cos() + off
    x = torch.exp(-(line / 0.15) ** 2) + 0.35 * torch.randn(n, 16, 16, generator=gen)
    return x[:, None], y


class ConvNet(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, c, 3, padding=1), nn.GroupNorm(4, c), nn.ReLU(), nn.MaxPool2d(2))
        self.mid = nn.Sequential(nn.Conv2d(c, 2 * c, 3, padding=1), nn.GroupNorm(4, 2 * c), nn.ReLU(), nn.MaxPool2d(2))
        self.head = nn.Linear(2 * c * 16, 6)

    def forward(self, x):
        f = self.mid(self.stem(x))
        return self.head(f.flatten(1)), f


class Distiller:
    def __init__(self, teacher, student, cfg):
        self.teacher, self.student, self.cfg = teacher, student, cfg
        self.projector = nn.Conv2d(16, 48, 1)
        self.params = [*student.parameters(), *self.projector.parameters()]
        self.optimizer = torch.optim.SGD(self.params, lr=cfg.lr, momentum=0.9)
        self.scaler = torch.amp.GradScaler("cpu", init_scale=cfg.init_scale, growth_interval=1000)

    def losses(self, x, y):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            with torch.no_grad():
                t_logits, t_feat = self.teacher(x)
            s_logits, s_feat = self.student(x)
            proj = self.projector(s_feat)
        s, t = s_logits.float() / self.cfg.tau, t_logits.float() / self.cfg.tau
        return {
            "ce": F.cross_entropy(s_logits.float(), y),
            "kd": F.kl_div(F.log_softmax(s, 1), F.softmax(t, 1), reduction="batchmean") * self.cfg.tau ** 2,
            "feat": F.mse_loss(proj.float(), t_feat.float()),
        }

    def step(self, x, y):
        parts = self.losses(x, y)
        loss = sum(self.cfg.weights[k] * v for k, v in parts.items())
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.params, self.cfg.clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return {**{k: v.item() for k, v in parts.items()}, "norm": float(norm)}


@torch.no_grad()
def accuracy(net, x, y):
    net.eval()
    acc = (net(x)[0].argmax(1) == y).float().mean().item()
    net.train()
    return acc


def main(cfg):
    torch.manual_seed(10)
    gen = torch.Generator().manual_seed(10)
    test = images(600, gen)
    teacher = ConvNet(24)
    opt = torch.optim.Adam(teacher.parameters(), lr=2e-3)
    for _ in range(120):
        x, y = images(40, gen)
        opt.zero_grad()
        F.cross_entropy(teacher(x)[0], y).backward()
        opt.step()
    print(f"teacher accuracy {accuracy(teacher, *test):.3f}")
    teacher.eval().requires_grad_(False)
    run = Distiller(teacher, ConvNet(8), cfg)
    for step in range(cfg.steps):
        log = run.step(*images(cfg.batch, gen))
        if step % 30 == 29:
            print(f"step {step + 1} " + " ".join(f"{k} {v:.4g}" for k, v in log.items()))
    print(f"student accuracy {accuracy(run.student, *test):.3f}")


if __name__ == "__main__":
    main(Settings())
