"""Simple-recipe feature distillation (projector, normalisation, soft-maximum distance) on a dense counting task."""
import torch
import torch.nn as nn
import torch.nn.functional as F

torch.manual_seed(53)


class CountNet(nn.Module):
    def __init__(self, w):
        super().__init__()
        self.neck = nn.Sequential(nn.Conv2d(1, w, 3, 2, 1), nn.ReLU(), nn.Conv2d(w, w, 3, 2, 1), nn.ReLU())
        self.density = nn.Conv2d(w, 1, 1)

    def forward(self, x):
        f = self.neck(x)
        return F.softplus(self.density(f)), f


class SGDLoss(nn.Module):
    """Log-sum distance between projected student and teacher descriptors."""

    def __init__(self, s_dim, t_dim, alpha=2.0):
        super().__init__()
        self.embed = nn.Conv2d(s_dim, t_dim, 1)
        self.alpha = alpha

    @staticmethod
    def standardise(f, dims):
        mu, sd = f.mean(dims, keepdim=True), f.std(dims, keepdim=True)
        return (f - mu) / (sd + 1e-4)

    def forward(self, pred, target):
        pred = self.embed(pred)
        pred, target = self.standardise(pred, (0, 2, 3)), self.standardise(target, (0, 2, 3))
        z_s, z_t = pred.mean(-1).mean(-1), target.mean(-1).mean(-1)
        return torch.log((z_s - z_t).abs().pow(self.alpha).sum() + 1.0)


def crowd(n=12):
    x, y = 0.2 * torch.randn(n, 1, 24, 24), torch.zeros(n, 1, 6, 6)
    for i in range(n):
        for _ in range(int(torch.randint(1, 9, (1,)))):
            r, c = torch.randint(1, 23, (2,)).tolist()
            x[i, 0, r - 1:r + 2, c - 1:c + 2] += 0.8
            y[i, 0, r // 4, c // 4] += 1
    return x, y


def count_loss(d, y):
    return F.mse_loss(d, y) + 0.01 * (d.sum((1, 2, 3)) - y.sum((1, 2, 3))).abs().mean()


teacher = CountNet(24)
opt = torch.optim.Adam(teacher.parameters(), lr=4e-3)
for _ in range(80):
    x, y = crowd()
    opt.zero_grad(); count_loss(teacher(x)[0], y).backward(); opt.step()
teacher.eval().requires_grad_(False)

student, criterion = CountNet(6), SGDLoss(6, 24)
optimizer = torch.optim.Adam([*student.parameters(), *criterion.parameters()], lr=4e-3)
for step in range(90):
    x, y = crowd()
    density, feat = student(x)
    _, t_feat = teacher(x)
    task, kd = count_loss(density, y), criterion(feat, t_feat)
    loss = task + 0.2 * kd
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 30 == 0:
        print(f"step {step} task {task.item():.4f} kd {kd.item():.4f}")
with torch.no_grad():
    x, y = crowd(100)
    mae = (student(x)[0].sum((1, 2, 3)) - y.sum((1, 2, 3))).abs().mean()
print(f"count MAE {mae.item():.4f}")
