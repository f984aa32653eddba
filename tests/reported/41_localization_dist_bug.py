"""Localization distillation for a detector whose box edges are discrete distributions (reg_max bins)."""
import functools
import torch
import torch.nn as nn
import torch.nn.functional as F

torch.manual_seed(41)
REG_MAX, CELLS = 16, 25


def weighted_loss(fn):
    @functools.wraps(fn)
    def wrapper(pred, target, weight=None, avg_factor=None, **kw):
        loss = fn(pred, target, **kw)
        if weight is not None:
            loss = loss * weight
        return loss.mean() if avg_factor is None else loss.sum() / avg_factor
    return wrapper


@weighted_loss
def knowledge_distillation_kl_div_loss(pred, soft_label, T):
    target = F.softmax(soft_label / T, dim=1).detach()
    kd = F.kl_div(F.log_softmax(pred / T, dim=1), target, reduction="none")
    return kd.mean(1) * (T * T)


@weighted_loss
def distribution_focal_loss(pred, label):
    left = label.long()
    right = left + 1
    wl, wr = right.float() - label, label - left.float()
    return F.cross_entropy(pred, left, reduction="none") * wl + F.cross_entropy(pred, right, reduction="none") * wr


class GFLHead(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.trunk = nn.Sequential(nn.Conv2d(1, width, 3, 2, 1), nn.ReLU(), nn.Conv2d(width, width, 3, 2, 1), nn.ReLU())
        self.reg = nn.Conv2d(width, 4 * (REG_MAX + 1), 1)

    def forward(self, x):
        return self.reg(self.trunk(x)).permute(0, 2, 3, 1).reshape(-1, REG_MAX + 1)


def sample(n=12):
    img, ltrb = 0.3 * torch.randn(n, 1, 20, 20), torch.zeros(n, 5, 5, 4)
    pos = torch.zeros(n, 5, 5)
    for i in range(n):
        y1, x1 = torch.randint(0, 8, (2,)).tolist()
        h, w = torch.randint(5, 12, (2,)).tolist()
        img[i, 0, y1:y1 + h, x1:x1 + w] += 1
        for r in range(5):
            for c in range(5):
                cy, cx = 4 * r + 2, 4 * c + 2
                d = torch.tensor([cx - x1, cy - y1, x1 + w - cx, y1 + h - cy]).float()
                if d.min() > 0:
                    ltrb[i, r, c], pos[i, r, c] = d, 1
    return img, ltrb.view(-1).clamp(0, REG_MAX - 0.01), pos.view(-1, 1).expand(-1, 4).reshape(-1)


teacher_head, student_head = GFLHead(24), GFLHead(8)
opt = torch.optim.Adam(teacher_head.parameters(), lr=4e-3)
for _ in range(60):
    img, t, pos = sample()
    loss = distribution_focal_loss(teacher_head(img), t, weight=pos, avg_factor=pos.sum())
    opt.zero_grad(); loss.backward(); opt.step()
teacher_head.eval().requires_grad_(False)

optimizer = torch.optim.SGD(student_head.parameters(), lr=0.05, momentum=0.9)
for step in range(80):
    img, t, pos = sample()
    corners, soft = student_head(img), teacher_head(img)
    loss_dfl = distribution_focal_loss(corners, t, weight=pos, avg_factor=pos.sum())
    loss_ld = knowledge_distillation_kl_div_loss(corners, soft, weight=pos, avg_factor=pos.sum(), T=4.0)
    loss = 0.25 * loss_dfl + 0.25 * loss_ld
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 20 == 0:
        print(f"step {step} dfl {loss_dfl.item():.4f} ld {loss_ld.item():.4f}")
print(f"final dfl {loss_dfl.item():.4f} ld {loss_ld.item():.4f}")
