"""Masked generative distillation between detector necks."""
import torch
import torch.nn as nn
import torch.nn.functional as F

torch.manual_seed(51)


class Neck(nn.Module):
    def __init__(self, w, out=16):
        super().__init__()
        self.c1 = nn.Sequential(nn.Conv2d(1, w, 3, 2, 1), nn.BatchNorm2d(w), nn.ReLU())
        self.p3 = nn.Conv2d(w, out, 3, 2, 1)
        self.p4 = nn.Conv2d(out, out, 3, 2, 1)
        self.obj = nn.Conv2d(out, 1, 1)

    def forward(self, x):
        p3 = self.p3(self.c1(x))
        p4 = self.p4(F.relu(p3))
        return [self.obj(F.relu(p)) for p in (p3, p4)], [p3, p4]


class MGDLoss(nn.Module):
    def __init__(self, channels_s, channels_t, lambda_mgd=0.4):
        super().__init__()
        self.generation = nn.ModuleList(nn.Sequential(nn.Conv2d(s, t, 3, padding=1), nn.ReLU(), nn.Conv2d(t, t, 3, padding=1))
                                        for s, t in zip(channels_s, channels_t))
        self.lambda_mgd = lambda_mgd

    def forward(self, y_s, y_t):
        total = 0.0
        for gen, s, t in zip(self.generation, y_s, y_t):
            mat = (torch.rand(s.size(0), 1, *s.shape[2:]) > self.lambda_mgd).float()
            total = total + F.mse_loss(gen(s * mat), t)
        return total


class FeatureDistiller(nn.Module):
    def __init__(self, channels_s, channels_t):
        super().__init__()
        self.norm = nn.ModuleList(nn.BatchNorm2d(c, affine=False) for c in channels_t)
        self.norm1 = nn.ModuleList(nn.BatchNorm2d(c) for c in channels_s)
        self.feature_loss = MGDLoss(channels_s, channels_t)

    def forward(self, y_s, y_t):
        stu, tea = [], []
        for i, (s, t) in enumerate(zip(y_s, y_t)):
            t = self.norm1[i](t)
            stu.append(self.norm1[i](s))
            tea.append(t.detach())
        return self.feature_loss(stu, tea)


def scenes(n=12):
    x, g3, g4 = 0.4 * torch.randn(n, 1, 32, 32), torch.zeros(n, 1, 8, 8), torch.zeros(n, 1, 4, 4)
    for i in range(n):
        big = torch.rand(()) < 0.5
        s = 9 if big else 5
        r, c = torch.randint(0, 32 - s, (2,)).tolist()
        x[i, 0, r:r + s, c:c + s] += 1
        (g4 if big else g3)[i, 0, (r + s // 2) // (8 if big else 4), (c + s // 2) // (8 if big else 4)] = 1
    return x, [g3, g4]


def obj_loss(preds, gts):
    return sum(F.binary_cross_entropy_with_logits(p, g, pos_weight=torch.tensor(8.0)) for p, g in zip(preds, gts))


teacher = Neck(24)
opt = torch.optim.Adam(teacher.parameters(), lr=4e-3)
for _ in range(60):
    x, g = scenes()
    opt.zero_grad(); obj_loss(teacher(x)[0], g).backward(); opt.step()
teacher.eval().requires_grad_(False)

student, distill = Neck(6), FeatureDistiller([16, 16], [16, 16])
optimizer = torch.optim.Adam([*student.parameters(), *distill.parameters()], lr=4e-3)
for step in range(80):
    x, g = scenes()
    preds, feats = student(x)
    with torch.no_grad():
        t_feats = teacher(x)[1]
    task, mgd = obj_loss(preds, g), distill(feats, t_feats)
    optimizer.zero_grad()
    (task + 0.5 * mgd).backward()
    optimizer.step()
    if step % 20 == 0:
        print(f"step {step} obj {task.item():.4f} mgd {mgd.item():.4f}")
print(f"final obj {task.item():.4f} mgd {mgd.item():.4f}")
