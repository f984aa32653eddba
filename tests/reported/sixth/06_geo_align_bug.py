"""Lightning-like module: a small vision net aligned with a frozen big one."""
import torch
import torch.nn as nn
import torch.nn.functional as F

torch.manual_seed(2025)
S, K = 12, 5


def images(n):
    y = torch.randint(K, (n,))
    u = torch.linspace(-1, 1, S)
    gx, gy = torch.meshgrid(u, u, indexing="ij")
    ang = y[:, None, None] * 3.14159 / K + 0.12 * torch.randn(n, 1, 1)
    phase = 6.28 * torch.rand(n, 1, 1)
    wave = torch.sin(5.5 * (gx * ang.cos() + gy * ang.sin()) + phase)
    return (wave + 0.7 * torch.randn(n, S, S)).unsqueeze(1), y


class ConvNet(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, c, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
                                  nn.Conv2d(c, 2 * c, 3, padding=1), nn.ReLU())
        self.fc = nn.Linear(2 * c, K)

    def features(self, x):
        return self.stem(x)

    def forward(self, x):
        f = self.features(x)
        return f, self.fc(f.mean((2, 3)))


class AlignLoss(nn.Module):
    def __init__(self, c_in, c_out):
        super().__init__()
        self.projector = nn.Sequential(nn.Conv2d(c_in, c_out, 1), nn.ReLU(), nn.Conv2d(c_out, c_out, 1))

    def forward(self, mine, theirs):
        return (1 - F.cosine_similarity(self.projector(mine), theirs, dim=1)).mean()


class AlignedModule:
    def __init__(self, expert):
        self.expert = expert
        self.net = ConvNet(6)
        self.align = AlignLoss(12, 48)

    def configure_optimizers(self):
        params = list(self.net.parameters())
        return torch.optim.Adam(params, lr=4e-3)

    def training_step(self, batch):
        x, y = batch
        feats, logits = self.net(x)
        with torch.no_grad():
            ref = self.expert.features(x)
        align = self.align(feats, ref)
        return F.cross_entropy(logits, y) + 1.5 * align, align.detach()


class Runner:
    def __init__(self, steps, size):
        self.steps, self.size = steps, size

    def fit(self, module):
        opt = module.configure_optimizers()
        for i in range(self.steps):
            loss, align = module.training_step(images(self.size))
            opt.zero_grad()
            loss.backward()
            opt.step()
            if i % 20 == 0:
                print(f"[{i}] loss={loss.item():.3f} align={align.item():.3f}")


@torch.no_grad()
def top1(net, data):
    return (net(data[0])[1].argmax(1) == data[1]).float().mean().item()


val = images(500)
expert = ConvNet(24)
opt = torch.optim.Adam(expert.parameters(), lr=4e-3)
for _ in range(150):
    x, y = images(48)
    opt.zero_grad()
    F.cross_entropy(expert(x)[1], y).backward()
    opt.step()
expert.eval().requires_grad_(False)
print("expert", top1(expert, val))
module = AlignedModule(expert)
Runner(120, 32).fit(module)
print("net", top1(module.net, val))
