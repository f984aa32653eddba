"""Structured segmentation distillation, pixel-wise term."""
import torch
import torch.nn as nn
import torch.nn.functional as F

torch.manual_seed(38)
CLASSES = 5


class FCN(nn.Module):
    def __init__(self, w):
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(3, w, 3, 2, 1), nn.BatchNorm2d(w), nn.ReLU(),
                                  nn.Conv2d(w, w, 3, 1, 1), nn.BatchNorm2d(w), nn.ReLU())
        self.cls = nn.Conv2d(w, CLASSES, 1)

    def forward(self, x):
        f = self.down(x)
        return self.cls(f), f


class CriterionPixelWise(nn.Module):
    def forward(self, preds_S, preds_T):
        preds_T = preds_T.detach()
        assert preds_S.shape == preds_T.shape, "the output dim of teacher and student differ"
        N, C, W, H = preds_S.shape
        softmax_pred_T = F.softmax(preds_T.reshape(-1, C), dim=1)
        log_pred_S = F.log_softmax(preds_S.reshape(-1, C), dim=1)
        return torch.sum(-softmax_pred_T * log_pred_S) / W / H / N


class CriterionDSN(nn.Module):
    def __init__(self, ignore_index=255):
        super().__init__()
        self.criterion = nn.CrossEntropyLoss(ignore_index=ignore_index)

    def forward(self, preds, target):
        up = F.interpolate(preds, size=target.shape[-2:], mode="bilinear", align_corners=True)
        return self.criterion(up, target)


def scene(n=8, s=24):
    lab = torch.zeros(n, s, s, dtype=torch.long)
    for i in range(n):
        for k in range(1, CLASSES):
            r, c, h, w = (torch.rand(4) * torch.tensor([s - 6, s - 6, 8, 8])).int().tolist()
            lab[i, r:r + h + 3, c:c + w + 3] = k
    palette = torch.linspace(-1, 1, CLASSES * 3).view(CLASSES, 3)[:, [2, 0, 1]]
    img = palette[lab].permute(0, 3, 1, 2) * torch.tensor([1.0, -1, 1]).view(1, 3, 1, 1) + 0.5 * torch.randn(n, 3, s, s)
    lab[torch.rand(n, s, s) < 0.03] = 255
    return img, lab


teacher, student = FCN(24), FCN(6)
dsn, pixel = CriterionDSN(), CriterionPixelWise()
opt = torch.optim.SGD(teacher.parameters(), lr=0.1, momentum=0.9)
for _ in range(60):
    x, y = scene()
    opt.zero_grad(); dsn(teacher(x)[0], y).backward(); opt.step()
teacher.eval()

G_solver = torch.optim.SGD(student.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
for step in range(80):
    images, labels = scene()
    with torch.no_grad():
        preds_T = teacher(images)[0]
    preds_S = student(images)[0]
    mc, pi = dsn(preds_S, labels), pixel(preds_S, preds_T)
    G_loss = mc + 1.0 * pi
    G_solver.zero_grad()
    G_loss.backward()
    G_solver.step()
    if step % 20 == 0:
        print(f"step {step} mc {mc.item():.4f} pi {pi.item():.4f}")
print(f"final mc {mc.item():.4f} pi {pi.item():.4f}")
