"""DINO-style self-distillation on flattened patches with gradient accumulation."""
import copy
import torch
from torch import nn
import torch.nn.functional as F

torch.manual_seed(13)
torch.set_num_threads(1)
ACCUM, MICRO, OUT, DIM = 4, 32, 64, 48
GEN = torch.Generator().manual_seed(8)
PROTOS = torch.randn(10, DIM, generator=GEN)


def draw(n):
    y = torch.randint(0, 10, (n,), generator=GEN)
    return PROTOS[y] + 2.2 * torch.randn(n, DIM, generator=GEN), y


def view(x, drop):
    keep = (torch.rand(x.shape, generator=GEN) > drop).float()
    return x * keep + 0.3 * torch.randn(x.shape, generator=GEN)


class DINOHead(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(DIM, 96), nn.GELU(), nn.Linear(96, 64))
        self.proj = nn.Sequential(nn.GELU(), nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 32))
        self.last = nn.Linear(32, OUT, bias=False)

    def forward(self, x):
        return self.last(F.normalize(self.proj(self.backbone(x)), dim=-1))


class DINOLoss(nn.Module):
    def __init__(self, t_temp=0.05, s_temp=0.1, momentum=0.9):
        super().__init__()
        self.t_temp, self.s_temp, self.momentum = t_temp, s_temp, momentum
        self.register_buffer("center", torch.zeros(1, OUT))

    def forward(self, s_views, t_views):
        pairs = [(s, t) for i, s in enumerate(s_views) for j, t in enumerate(t_views) if i != j]
        ce = [-(F.softmax((t - self.center) / self.t_temp, -1) * F.log_softmax(s / self.s_temp, -1))
              .sum(-1).mean() for s, t in pairs]
        return sum(ce) / len(ce)

    @torch.no_grad()
    def update_center(self, t_out):
        self.center.mul_(self.momentum).add_(t_out.mean(0, keepdim=True), alpha=1 - self.momentum)


@torch.no_grad()
def ema_update(student, teacher, m=0.98):
    for s, t in zip(student.parameters(), teacher.parameters()):
        t.mul_(m).add_(s, alpha=1 - m)


@torch.no_grad()
def knn_accuracy(net, bank, query, k=5):
    fb, fq = (F.normalize(net.backbone(x), dim=-1) for x in (bank[0], query[0]))
    votes = bank[1][(fq @ fb.T).topk(k, 1).indices]
    return (votes.mode(1).values == query[1]).float().mean().item()


student = DINOHead()
teacher = copy.deepcopy(student).requires_grad_(False)
criterion = DINOLoss()
opt = torch.optim.AdamW(student.parameters(), lr=1e-3, weight_decay=0.01)
bank, query = draw(1000), draw(400)
window = []
for it in range(ACCUM * 120):
    x, _ = draw(MICRO)
    globals_ = [view(x, 0.2), view(x, 0.2)]
    locals_ = [view(x, 0.6) for _ in range(2)]
    with torch.no_grad():
        t_views = [teacher(v) for v in globals_]
    s_views = [student(v) for v in globals_ + locals_]
    loss = criterion(s_views, t_views)
    (loss / ACCUM).backward()
    window.extend(t_views)
    if (it + 1) % ACCUM == 0:
        opt.step()
        opt.zero_grad()
        ema_update(student, teacher)
        criterion.update_center(torch.cat(window))
        window.clear()
    if (it + 1) % (ACCUM * 20) == 0:
        print(f"step {(it + 1) // ACCUM} loss {loss.item():.4f} knn {knn_accuracy(teacher, bank, query):.3f} "
              f"center norm {criterion.center.norm().item():.3f}")
