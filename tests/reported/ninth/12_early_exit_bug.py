"""Be-your-own-teacher: exits at three depths, the deepest one teaches the others."""
import torch
from torch import nn
from torch.nn import functional as F


class Stage(nn.Sequential):
    def __init__(self, i, o, stride):
        super().__init__(nn.Conv2d(i, o, 3, stride, 1, bias=False), nn.BatchNorm2d(o), nn.ReLU())


class Exit(nn.Module):
    def __init__(self, ch, feat, n_cls):
        super().__init__()
        self.align = nn.Conv2d(ch, feat, 1)
        self.fc = nn.Linear(feat, n_cls)

    def forward(self, x):
        f = self.align(x).mean((2, 3))
        return self.fc(f.relu()), f


class ExitNet(nn.Module):
    def __init__(self, n_cls=6):
        super().__init__()
        self.stages = nn.ModuleList([Stage(1, 8, 1), Stage(8, 16, 2), Stage(16, 32, 2)])
        self.exits = nn.ModuleList([Exit(c, 32, n_cls) for c in (8, 16, 32)])

    def forward(self, x):
        logits, feats = [], []
        for st, ex in zip(self.stages, self.exits):
            x = st(x)
            z, f = ex(x)
            logits.append(z)
            feats.append(f)
        return logits, feats


class SelfDistilModule(nn.Module):
    """keeps model, losses and optimiser together, in the manner of a Lightning module"""

    def __init__(self, warmup=50, tau=3.0, alpha=0.7, beta=0.3, lr=5e-3):
        super().__init__()
        self.net = ExitNet()
        self.warmup, self.tau, self.alpha, self.beta, self.lr = warmup, tau, alpha, beta, lr
        self.history = []

    def configure_optimizers(self):
        opt = torch.optim.AdamW(self.net.parameters(), lr=self.lr, weight_decay=1e-3)
        return opt, torch.optim.lr_scheduler.StepLR(opt, 90, 0.3)

    def soft(self, z, target):
        t = self.tau
        return t * t * F.kl_div(F.log_softmax(z / t, 1), F.softmax(target / t, 1), reduction="batchmean")

    def training_step(self, batch, step):
        x, y = batch
        logits, feats = self.net(x)
        deep = F.cross_entropy(logits[-1], y)
        if step < self.warmup:
            return deep, {"deep": deep.item()}
        teach, hint = logits[-1], feats[-1]
        kd = sum(self.soft(z, teach) for z in logits[:-1])
        ce = sum(F.cross_entropy(z, y) for z in logits[:-1])
        ft = sum(F.mse_loss(f, hint) for f in feats[:-1])
        loss = deep + (1 - self.alpha) * ce + self.alpha * kd + self.beta * ft
        return loss, {"deep": deep.item(), "ce": ce.item(), "kd": kd.item(), "ft": ft.item()}


def shapes(n, g):
    """six oriented gratings, with noise and random phase"""
    y = torch.randint(0, 6, (n,), generator=g)
    ang = y * torch.pi / 6
    yy, xx = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
    proj = xx * ang.cos()[:, None, None] + yy * ang.sin()[:, None, None]
    ph = torch.rand(n, 1, 1, generator=g) * 6.28
    img = torch.sin(0.9 * proj + ph) + 0.9 * torch.randn(n, 16, 16, generator=g)
    return img[:, None], y


@torch.no_grad()
def test(module):
    module.eval()
    x, y = shapes(600, torch.Generator().manual_seed(88))
    logits, _ = module.net(x)
    module.train()
    return [round((z.argmax(1) == y).float().mean().item(), 3) for z in logits]


def fit(module, total=150, bs=48):
    opt, sched = module.configure_optimizers()
    g = torch.Generator().manual_seed(1)
    module.train()
    for step in range(total):
        loss, logs = module.training_step(shapes(bs, g), step)
        opt.zero_grad(set_to_none=True)
        loss.backward()
        opt.step()
        sched.step()
        module.history.append(logs)
        if step == module.warmup - 1:
            print("after warmup", test(module))
        elif step % 25 == 24:
            print(step + 1, {k: round(v, 4) for k, v in logs.items()})


if __name__ == "__main__":
    torch.manual_seed(2)
    m = SelfDistilModule()
    fit(m)
    print("exit accuracies", test(m))
