"""ViT with class and distillation token, convolutional teacher, hard distillation, bf16 autocast."""
import torch
import torch.nn as nn
import torch.nn.functional as F

torch.manual_seed(35)
SIZE, PATCH, NCLS = 16, 4, 5


def make(n):
    """five kinds of small patterns at a random place"""
    kinds = torch.zeros(NCLS, 5, 5)
    kinds[0, 2, :] = 1
    kinds[1, :, 2] = 1
    kinds[2] = torch.eye(5)
    kinds[3] = torch.eye(5).flip(1)
    kinds[4, [0, 0, 4, 4], [0, 4, 0, 4]] = 1
    y = torch.randint(0, NCLS, (n,))
    x = 0.3 * torch.randn(n, 1, SIZE, SIZE)
    r, c = torch.randint(0, 4, (n,)) * 3, torch.randint(0, 4, (n,)) * 3
    for i in range(n):
        x[i, 0, r[i]:r[i] + 5, c[i]:c[i] + 5] += 1.6 * kinds[y[i]]
    return x, y


class ConvTeacher(nn.Sequential):
    def __init__(self):
        super().__init__(
            nn.Conv2d(1, 24, 5, padding=2), nn.BatchNorm2d(24), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(24, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
            nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(32, NCLS))


class DistilledViT(nn.Module):
    def __init__(self, dim=32, depth=1, heads=4):
        super().__init__()
        n = (SIZE // PATCH) ** 2
        self.stem = nn.Sequential(nn.Conv2d(1, dim, 5, stride=2, padding=2), nn.GELU(), nn.Conv2d(dim, dim, 2, 2))
        self.cls_token = nn.Parameter(torch.randn(1, 1, dim) * 0.02)
        self.dist_token = nn.Parameter(torch.randn(1, 1, dim) * 0.02)
        self.pos = nn.Parameter(torch.randn(1, n + 2, dim) * 0.02)
        layer = nn.TransformerEncoderLayer(dim, heads, 2 * dim, dropout=0.0, batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(dim)
        self.head, self.head_dist = nn.Linear(dim, NCLS), nn.Linear(dim, NCLS)

    def forward(self, x):
        t = self.stem(x).flatten(2).transpose(1, 2)
        b = len(t)
        t = torch.cat([self.cls_token.expand(b, -1, -1), self.dist_token.expand(b, -1, -1), t], 1) + self.pos
        t = self.norm(self.blocks(t))
        out, out_dist = self.head(t[:, 0]), self.head_dist(t[:, 1])
        if self.training:
            return out, out_dist
        return (out + out_dist) / 2


class DistillationLoss(nn.Module):
    def __init__(self, base, teacher, alpha=0.5):
        super().__init__()
        self.base, self.teacher, self.alpha = base, teacher, alpha

    def forward(self, inputs, outputs, labels):
        outputs, outputs_kd = outputs
        base_loss = self.base(outputs, labels)
        with torch.no_grad():
            teacher_out = self.teacher(inputs)
        dist_loss = F.cross_entropy(outputs, teacher_out.argmax(1))
        return base_loss * (1 - self.alpha) + dist_loss * self.alpha


@torch.no_grad()
def evaluate(net):
    mode = net.training
    net.eval()
    st = torch.get_rng_state()
    torch.manual_seed(1)
    x, y = make(400)
    torch.set_rng_state(st)
    acc = (net(x).argmax(1) == y).float().mean().item()
    net.train(mode)
    return acc


teacher = ConvTeacher()
opt = torch.optim.Adam(teacher.parameters(), lr=5e-3)
for _ in range(45):
    x, y = make(32)
    loss = F.cross_entropy(teacher(x), y)
    opt.zero_grad()
    loss.backward()
    opt.step()
teacher.eval().requires_grad_(False)
print(f"teacher accuracy {evaluate(teacher):.3f}")

torch.manual_seed(36)
vit = DistilledViT()
criterion = DistillationLoss(nn.CrossEntropyLoss(label_smoothing=0.1), teacher)
opt = torch.optim.AdamW(vit.parameters(), lr=6e-3, weight_decay=0.02)
sched = torch.optim.lr_scheduler.OneCycleLR(opt, 6e-3, total_steps=75)
vit.train()
for it in range(75):
    x, y = make(32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = criterion(x, vit(x), y)
    opt.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(vit.parameters(), 2.0)
    opt.step()
    sched.step()
    if it % 25 == 24:
        print(f"iter {it + 1} loss {loss.item():.4f}")
print(f"vit accuracy {evaluate(vit):.3f}")
