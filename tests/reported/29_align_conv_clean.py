"""Feature distillation for a detector-like backbone, with 1x1 alignment convolutions inside the loss module."""
import torch
import torch.nn as nn
import torch.nn.functional as F

torch.manual_seed(29)


class Backbone(nn.Module):
    def __init__(self, w):
        super().__init__()
        self.s1 = nn.Sequential(nn.Conv2d(3, w, 3, 2, 1), nn.BatchNorm2d(w), nn.SiLU())
        self.s2 = nn.Sequential(nn.Conv2d(w, 2 * w, 3, 2, 1), nn.BatchNorm2d(2 * w), nn.SiLU())
        self.cls = nn.Conv2d(2 * w, 3, 1)
        self.box = nn.Conv2d(2 * w, 4, 1)

    def forward(self, x):
        f1 = self.s1(x)
        f2 = self.s2(f1)
        return (self.cls(f2), self.box(f2)), [f1, f2]


class FeatureLoss(nn.Module):
    def __init__(self, channels_s, channels_t):
        super().__init__()
        self.align = nn.ModuleList(nn.Conv2d(s, t, 1) for s, t in zip(channels_s, channels_t))

    def forward(self, y_s, y_t):
        loss = 0.0
        for conv, s, t in zip(self.align, y_s, y_t):
            s, t = conv(s), t.detach()
            s = (s - s.mean((0, 2, 3), keepdim=True)) / (s.std((0, 2, 3), keepdim=True) + 1e-5)
            t = (t - t.mean((0, 2, 3), keepdim=True)) / (t.std((0, 2, 3), keepdim=True) + 1e-5)
            loss = loss + F.mse_loss(s, t)
        return loss


def scenes(n=12):
    x = 0.3 * torch.randn(n, 3, 32, 32)
    cls, box = torch.full((n, 8, 8), -1), torch.zeros(n, 4, 8, 8)
    for i in range(n):
        k = int(torch.randint(0, 3, (1,)))
        r, c = torch.randint(0, 6, (2,)).tolist()
        x[i, k, 4 * r:4 * r + 8, 4 * c:4 * c + 8] += 1.5
        cls[i, r:r + 2, c:c + 2] = k
        box[i, :, r:r + 2, c:c + 2] = torch.tensor([r, c, r + 2, c + 2]).view(4, 1, 1) / 8
    return x, cls, box


def det_loss(pred, cls, box):
    onehot = F.one_hot(cls.clamp(min=0), 3).permute(0, 3, 1, 2) * (cls >= 0).unsqueeze(1)
    fg = (cls >= 0).unsqueeze(1).float()
    reg = (F.smooth_l1_loss(pred[1], box, reduction="none") * fg).sum() / fg.sum()
    return F.binary_cross_entropy_with_logits(pred[0], onehot.float()) * 3 + reg


def build_optimizer(*modules, lr=3e-3):
    return torch.optim.AdamW([p for m in modules for p in m.parameters()], lr=lr, weight_decay=1e-4)


teacher = Backbone(24)
opt = build_optimizer(teacher)
for _ in range(60):
    x, c, b = scenes()
    opt.zero_grad(); det_loss(teacher(x)[0], c, b).backward(); opt.step()
teacher.eval().requires_grad_(False)

model = Backbone(8)
distill_loss = FeatureLoss([8, 16], [24, 48])
optimizer = build_optimizer(model, distill_loss)
for step in range(80):
    x, c, b = scenes()
    pred, feats = model(x)
    with torch.no_grad():
        _, t_feats = teacher(x)
    d = distill_loss(feats, t_feats)
    loss = det_loss(pred, c, b) + 0.5 * d
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_([p for g in optimizer.param_groups for p in g["params"]], 10.0)
    optimizer.step()
    if step % 20 == 0:
        print(f"step {step} det {loss.item() - 0.5 * d.item():.4f} feat {d.item():.4f}")
print(f"last feat {d.item():.4f}")
