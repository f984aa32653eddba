"""Localisation distillation: box sides are distributions over bins, as in dense detectors."""
import torch
import torch.nn as nn
import torch.nn.functional as F

torch.manual_seed(404)
SIDE, BINS = 16, 9


def frames(n):
    x1, y1 = torch.randint(0, 8, (2, n))
    w, h = torch.randint(4, 9, (2, n))
    kind = torch.randint(3, (n,))
    img = 0.5 * torch.randn(n, 1, SIDE, SIDE)
    r = torch.arange(SIDE)
    cols = (r[None] >= x1[:, None]) & (r[None] < (x1 + w)[:, None])
    rows = (r[None] >= y1[:, None]) & (r[None] < (y1 + h)[:, None])
    inside = (rows[:, :, None] & cols[:, None, :]).float()
    stripes = torch.stack([torch.ones(SIDE, SIDE), (r % 2).float().expand(SIDE, SIDE), (r % 2).float()[:, None].expand(SIDE, SIDE)])
    img[:, 0] += inside * (0.4 + 1.2 * stripes[kind])
    box = torch.stack([x1, y1, x1 + w, y1 + h], 1).float() / SIDE
    return img, box, kind


class Detector(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(1, c, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
                                      nn.Conv2d(c, c, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(c * 64, 8 * c), nn.ReLU())
        self.side = nn.Linear(8 * c, 4 * BINS)
        self.kind = nn.Linear(8 * c, 3)

    def forward(self, img):
        h = self.backbone(img)
        return self.side(h).view(-1, 4, BINS), self.kind(h)


def expectation(side_logits):
    return (side_logits.softmax(-1) * torch.linspace(0, 1, BINS)).sum(-1)


def distribution_focal(side_logits, box):
    pos = box * (BINS - 1)
    left = pos.floor().clamp(max=BINS - 2).long()
    w_right = pos - left
    lp = side_logits.log_softmax(-1)
    pick = lambda i: lp.gather(-1, i.unsqueeze(-1)).squeeze(-1)
    return -((1 - w_right) * pick(left) + w_right * pick(left + 1)).mean()


def detection_loss(out, box, kind):
    side, cls = out
    return distribution_focal(side, box) + 2 * F.l1_loss(expectation(side), box) + F.cross_entropy(cls, kind)


def kl_rows(pred, soft_label, T):
    target = F.softmax(soft_label / T, dim=1).detach()
    kd = F.kl_div(F.log_softmax(pred / T, dim=1), target, reduction="none")
    return kd.mean(1) * (T * T)


@torch.no_grad()
def evaluate(net):
    img, box, kind = frames(500)
    side, cls = net(img)
    p = expectation(side)
    lt, rb = torch.maximum(p[:, :2], box[:, :2]), torch.minimum(p[:, 2:], box[:, 2:])
    inter = (rb - lt).clamp(min=0).prod(1)
    union = (p[:, 2:] - p[:, :2]).clamp(min=0).prod(1) + (box[:, 2:] - box[:, :2]).prod(1) - inter
    return f"iou {(inter / union).mean().item():.3f} kind {(cls.argmax(1) == kind).float().mean().item():.3f}"


big = Detector(12)
opt = torch.optim.Adam(big.parameters(), lr=2e-3)
for _ in range(260):
    img, box, kind = frames(32)
    opt.zero_grad()
    detection_loss(big(img), box, kind).backward()
    opt.step()
big.eval().requires_grad_(False)
print("big", evaluate(big))
small = Detector(4)
opt = torch.optim.Adam(small.parameters(), lr=3e-3)
for step in range(260):
    img, box, kind = frames(32)
    out, ref = small(img), big(img)
    ld = kl_rows(out[0].reshape(-1, BINS), ref[0].reshape(-1, BINS), T=4.0).mean()
    cls_kd = kl_rows(out[1], ref[1], T=2.0).mean()
    loss = detection_loss(out, box, kind) + 0.5 * ld + 0.5 * cls_kd
    opt.zero_grad()
    loss.backward()
    opt.step()
    if step % 65 == 0:
        print(step, f"ld {ld.item():.3f} cls {cls_kd.item():.3f}")
print("small", evaluate(small))
