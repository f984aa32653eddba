"""Pixel-wise distillation for a toy organ / lesion segmentation task (3 labels)."""
from dataclasses import dataclass
import torch
from torch import nn
import torch.nn.functional as F

@dataclass
class Config:
    classes: int = 3
    size: int = 18
    batch: int = 16
    teacher_steps: int = 160
    student_steps: int = 240
    T: float = 2.0
    seed: int = 31


def make_scans(n, cfg, g):
    yy, xx = torch.meshgrid(torch.arange(cfg.size), torch.arange(cfg.size), indexing="ij")

    def disc(lo, hi, cy, cx):
        r = lo + (hi - lo) * torch.rand(n, 1, 1, generator=g)
        return (yy - cy) ** 2 + (xx - cx) ** 2 < r ** 2

    cy, cx = (6 + 6 * torch.rand(n, 1, 1, generator=g) for _ in range(2))
    organ = disc(4, 7, cy, cx)
    lesion = disc(1.5, 3.5, cy + 2 * torch.randn(n, 1, 1, generator=g), cx + 2 * torch.randn(n, 1, 1, generator=g)) & organ
    mask = organ.long() + lesion.long()
    return 1.0 * mask[:, None].float() + 0.45 * torch.randn(n, 1, cfg.size, cfg.size, generator=g), mask


def fcn(w, cfg):
    return nn.Sequential(nn.Conv2d(1, w, 5, padding=2), nn.ReLU(), nn.Conv2d(w, w, 5, padding=2), nn.ReLU(),
                         nn.Conv2d(w, cfg.classes, 3, padding=1))


class CriterionPixelWise(nn.Module):
    def __init__(self, T):
        super().__init__()
        self.T = T

    def forward(self, preds_s, preds_t):
        n, c, h, w = preds_s.shape
        flat_s = preds_s.reshape(-1, c)
        flat_t = preds_t.detach().reshape(-1, c)
        soft = F.softmax(flat_t / self.T, dim=1)
        return -(soft * F.log_softmax(flat_s / self.T, dim=1)).sum(1).mean() * self.T ** 2


@torch.no_grad()
def dice(net, x, y, cfg):
    pred = net(x).argmax(1)
    return [round((2 * ((pred == c) & (y == c)).sum() / ((pred == c).sum() + (y == c).sum())).item(), 3) for c in (1, 2)]


def fit(net, steps, data, cfg, g, lr, teacher=None):
    x, y = data
    opt = torch.optim.Adam(net.parameters(), lr=lr)
    pixelwise = CriterionPixelWise(cfg.T)
    for step in range(1, steps + 1):
        i = torch.randint(0, len(x), (cfg.batch,), generator=g)
        out = net(x[i])
        loss = hard = F.cross_entropy(out, y[i])
        if teacher is not None:
            with torch.no_grad():
                t_out = teacher(x[i])
            loss = hard + pixelwise(out, t_out)
        opt.zero_grad()
        loss.backward()
        opt.step()
        if step % 80 == 0:
            print(f"  step {step} hard {hard.item():.4f} total {loss.item():.4f}")


if __name__ == "__main__":
    cfg = Config()
    torch.manual_seed(cfg.seed)
    torch.set_num_threads(1)
    g = torch.Generator().manual_seed(cfg.seed)
    train, val = make_scans(500, cfg, g), make_scans(150, cfg, g)
    teacher = fcn(16, cfg)
    fit(teacher, cfg.teacher_steps, train, cfg, g, 6e-3)
    teacher.eval().requires_grad_(False)
    print("teacher dice organ/lesion", dice(teacher, *val, cfg))
    student = fcn(8, cfg)
    fit(student, cfg.student_steps, train, cfg, g, 8e-3, teacher)
    print("student dice organ/lesion", dice(student.eval(), *val, cfg))
    with torch.no_grad():
        gap = F.kl_div(student(val[0]).log_softmax(1), teacher(val[0]).softmax(1), reduction="none").sum(1)
    print("student/teacher val kl per pixel", round(gap.mean().item(), 4))
