"""Monocular depth: a regression student with pixel-wise and feature distillation."""
import torch
import torch.nn as nn
import torch.nn.functional as F

torch.manual_seed(42)


class DepthNet(nn.Module):
    def __init__(self, w):
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(1, w, 5, 2, 2), nn.ELU(), nn.Conv2d(w, 2 * w, 3, 2, 1), nn.ELU())
        self.decoder = nn.Sequential(nn.Upsample(scale_factor=4, mode="bilinear", align_corners=False),
                                     nn.Conv2d(2 * w, 1, 3, 1, 1))

    def forward(self, x):
        f = self.encoder(x)
        return self.decoder(f), f


class CriterionPixelWise(nn.Module):
    def forward(self, preds_S, preds_T):
        assert preds_S.shape == preds_T.shape
        N, C, H, W = preds_S.shape
        soft_T = F.softmax(preds_T.permute(0, 2, 3, 1).reshape(-1, C), dim=1)
        log_S = F.log_softmax(preds_S.permute(0, 2, 3, 1).reshape(-1, C), dim=1)
        return torch.sum(-soft_T * log_S) / W / H / N


class CriterionPairWise(nn.Module):
    def __init__(self, scale=2):
        super().__init__()
        self.pool = nn.MaxPool2d(scale)

    def similarity(self, f):
        f = F.normalize(self.pool(f).flatten(2), dim=1)
        return torch.einsum("icm,icn->imn", f, f)

    def forward(self, feat_S, feat_T):
        return (self.similarity(feat_S) - self.similarity(feat_T)).pow(2).mean()


def views(n=10):
    g = torch.linspace(0, 1, 24)
    near, tilt = torch.rand(2, n, 1, 1)
    depth = 0.3 + near + tilt * g[None, :, None] + 0.3 * torch.sin(6 * g[None, None] + 6.28 * torch.rand(n, 1, 1))
    shade = 1 / depth + 0.1 * torch.randn(n, 24, 24)
    sparse = torch.rand(n, 1, 24, 24) < 0.1
    return shade.unsqueeze(1), depth.unsqueeze(1), sparse


teacher, student = DepthNet(16), DepthNet(4)
optimizer_t = torch.optim.Adam(teacher.parameters(), lr=3e-3)
for _ in range(80):
    x, d, _ = views()
    loss = F.l1_loss(teacher(x)[0], d)
    optimizer_t.zero_grad(); loss.backward(); optimizer_t.step()
teacher.eval()

pixel, pair = CriterionPixelWise(), CriterionPairWise()
optimizer = torch.optim.Adam(student.parameters(), lr=4e-3)
for step in range(80):
    x, d, valid = views()
    pred, feat = student(x)
    with torch.no_grad():
        pred_t, feat_t = teacher(x)
    gt = (pred - d).abs()[valid].mean()
    pi, pa = pixel(pred, pred_t), pair(feat, feat_t)
    loss = 0.5 * gt + 2.0 * pi + 0.5 * pa
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 20 == 0:
        print(f"{step} gt {gt.item():.4f} pixel {pi.item():.4f} pair {pa.item():.4f}")
with torch.no_grad():
    x, d, _ = views(64)
    print(f"abs error {(student(x)[0] - d).abs().mean().item():.4f}")
