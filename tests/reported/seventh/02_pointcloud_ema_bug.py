# Mean-teacher adaptation of a small PointNet to a shifted sensor (unlabelled target clouds).
import copy
import math
import torch
from torch import nn
from torch.nn import functional as F
torch.manual_seed(0)
torch.set_num_threads(1)
NPTS, NCLS = 32, 4

def clouds(n, g, shifted=False):
    y = torch.randint(0, NCLS, (n,), generator=g)
    u, v = (torch.rand(n, NPTS, generator=g) * 2 * math.pi for _ in range(2))
    h = torch.rand(n, NPTS, generator=g) * 2 - 1
    r = (1 - h ** 2).clamp_min(0).sqrt()
    sphere = torch.stack([r * u.cos(), r * u.sin(), h], -1)
    box = F.normalize(torch.rand(n, NPTS, 3, generator=g) * 2 - 1, p=float("inf"), dim=-1)
    cyl = torch.stack([0.6 * u.cos(), 0.6 * u.sin(), h], -1)
    torus = torch.stack([(0.7 + .3 * v.cos()) * u.cos(), (0.7 + .3 * v.cos()) * u.sin(), .3 * v.sin()], -1)
    pts = torch.stack([sphere, box, cyl, torus], 1)[torch.arange(n), y]
    if shifted:
        pts = pts * torch.tensor([1.5, 1.3, 1.5]) + 0.12 * torch.randn(pts.shape, generator=g)
    return pts + 0.03 * torch.randn(pts.shape, generator=g), y


class PointNet(nn.Module):
    def __init__(self, w=32):
        super().__init__()
        self.point = nn.Sequential(nn.Conv1d(3, w, 1), nn.BatchNorm1d(w), nn.ReLU(),
                                   nn.Conv1d(w, 2 * w, 1), nn.BatchNorm1d(2 * w), nn.ReLU())
        self.head = nn.Sequential(nn.Linear(2 * w, w), nn.BatchNorm1d(w), nn.ReLU(), nn.Linear(w, NCLS))

    def forward(self, pts):
        return self.head(self.point(pts.transpose(1, 2)).amax(-1))


class MomentumUpdater:
    def __init__(self, tau=0.98):
        self.tau = tau

    @torch.no_grad()
    def update(self, online, momentum):
        for o, m in zip(online.parameters(), momentum.parameters()):
            m.mul_(self.tau).add_(o, alpha=1 - self.tau)


@torch.no_grad()
def score(net, x, y):
    mode = net.training
    acc = (net.eval()(x).argmax(1) == y).float().mean().item()
    net.train(mode)
    return acc


g = torch.Generator().manual_seed(5)
src_x, src_y = clouds(800, g)
tgt_x, _ = clouds(1200, g, shifted=True)
val_x, val_y = clouds(500, g, shifted=True)

student = PointNet()
opt = torch.optim.Adam(student.parameters(), lr=2e-3)
for step in range(120):                                   # warm-up on the labelled source
    i = torch.randint(0, len(src_x), (64,), generator=g)
    opt.zero_grad()
    F.cross_entropy(student(src_x[i]), src_y[i]).backward()
    opt.step()
print("source-only target acc", round(score(student, val_x, val_y), 3))

teacher = copy.deepcopy(student).eval().requires_grad_(False)
ema = MomentumUpdater()
opt = torch.optim.Adam(student.parameters(), lr=1e-3)
for step in range(240):
    i, j = (torch.randint(0, len(p), (b,), generator=g) for p, b in ((src_x, 32), (tgt_x, 64)))
    with torch.no_grad():
        soft = F.softmax(teacher(tgt_x[j]), 1)
    out = student(torch.cat([src_x[i], tgt_x[j] + 0.05 * torch.randn(64, NPTS, 3, generator=g)]))
    sup = F.cross_entropy(out[:32], src_y[i])
    cons = -(soft * F.log_softmax(out[32:], 1)).sum(1).mean()
    opt.zero_grad()
    (sup + cons).backward()
    opt.step()
    ema.update(student, teacher)
    if step % 60 == 59:
        print(f"step {step + 1} sup {sup.item():.3f} cons {cons.item():.3f} "
              f"teacher {score(teacher, val_x, val_y):.3f} student {score(student, val_x, val_y):.3f}")
