import torch
import torch.nn as nn
import torch.nn.functional as F
from dataclasses import dataclass, field


@dataclass
class Options:
    seed: int = 808
    dim: int = 20
    hint: int = 6
    classes: int = 6
    dropout: float = 0.25
    warmup: int = 150
    steps: int = 260
    teacher: str = "live"
    sizes: list = field(default_factory=lambda: [96, 64])


class HintedNet(nn.Module):
    """Takes features and, optionally, a hint vector that reveals part of the answer."""

    def __init__(self, o):
        super().__init__()
        dims, mods = [o.dim + o.hint, *o.sizes], []
        for a, b in zip(dims, dims[1:]):
            mods += [nn.Linear(a, b), nn.ReLU(), nn.Dropout(o.dropout)]
        self.body = nn.Sequential(*mods)
        self.head = nn.Linear(dims[-1], o.classes)
        self.o = o

    def forward(self, x, hint=None):
        if hint is None:
            hint = x.new_zeros(x.size(0), self.o.hint)
        return self.head(self.body(torch.cat([x, hint], 1)))


class World:
    def __init__(self, o):
        self.o = o
        self.mu = 0.75 * torch.randn(o.classes, o.dim)

    def sample(self, n):
        y = torch.randint(self.o.classes, (n,))
        x = self.mu[y] + torch.randn(n, self.o.dim)
        hint = F.one_hot(y, self.o.classes) + 0.5 * torch.randn(n, self.o.hint)
        return x, hint, y


class SelfDistiller:
    def __init__(self, o):
        torch.manual_seed(o.seed)
        self.o, self.world, self.model = o, World(o), HintedNet(o)
        self.teacher_model = self.model if o.teacher == "live" else None
        self.pool = self.world.sample(400)

    def evaluate(self):
        self.model.eval()
        x, h, y = self.world.sample(2000)
        with torch.no_grad():
            plain = (self.model(x).argmax(1) == y).float().mean().item()
            hinted = (self.model(x, h).argmax(1) == y).float().mean().item()
        return f"plain {plain:.3f} hinted {hinted:.3f}"

    def pretrain(self):
        opt = torch.optim.Adam(self.model.parameters(), lr=2e-3)
        self.model.train()
        for _ in range(self.o.warmup):
            x, h, y = self.pool
            loss = F.cross_entropy(self.model(x, h), y) + 0.2 * F.cross_entropy(self.model(x), y)
            opt.zero_grad()
            loss.backward()
            opt.step()

    def targets(self, x, hint):
        self.teacher_model.eval()
        with torch.no_grad():
            out = self.teacher_model(x, hint).softmax(1)
        return out

    def distil(self):
        opt = torch.optim.Adam(self.model.parameters(), lr=1e-3)
        for step in range(self.o.steps):
            self.model.train()
            x, hint, _ = self.world.sample(64)
            soft = self.targets(x, hint)
            kd = F.kl_div(self.model(x).log_softmax(1), soft, reduction="batchmean")
            px, ph, py = self.pool
            anchor = F.cross_entropy(self.model(px, ph), py)
            opt.zero_grad()
            (kd + 0.5 * anchor).backward()
            opt.step()
            if step % 65 == 0:
                print(step, f"kd {kd.item():.3f}", self.evaluate())


job = SelfDistiller(Options())
job.pretrain()
print("pretrained", job.evaluate())
job.distil()
print("distilled", job.evaluate())
