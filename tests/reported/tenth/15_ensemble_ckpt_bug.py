"""Three experts, each trained in its own job (DataParallel), are distilled into one net."""
import tempfile
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F

torch.manual_seed(19)
N_CLS, TEMP = 6, 3.0


class Mlp(nn.Module):
    def __init__(self, hidden):
        super().__init__()
        self.features = nn.Sequential(nn.Linear(16, hidden), nn.BatchNorm1d(hidden), nn.ReLU(),
                                      nn.Linear(hidden, hidden), nn.BatchNorm1d(hidden), nn.ReLU())
        self.classifier = nn.Linear(hidden, N_CLS)

    def forward(self, x):
        return self.classifier(self.features(x))


class Rings:
    """Classes are told apart by a quadratic form, so that linear nets fail."""

    def __init__(self):
        self.forms = torch.randn(N_CLS, 16, 16) / 4

    def draw(self, n, g):
        x = torch.randn(n, 16, generator=g)
        energy = torch.einsum("ni,kij,nj->nk", x, self.forms, x)
        return x, (energy + 0.1 * torch.randn(n, N_CLS, generator=g)).argmax(1)


def expert_job(data, path, seed):
    torch.manual_seed(seed)
    g = torch.Generator().manual_seed(seed)
    net = nn.DataParallel(Mlp(128))
    opt = torch.optim.Adam(net.parameters(), lr=3e-3)
    net.train()
    for _ in range(400):
        x, y = data.draw(128, g)
        opt.zero_grad()
        F.cross_entropy(net(x), y).backward()
        opt.step()
    torch.save({"model": net.state_dict(), "seed": seed}, path)


def load_expert(path):
    net = Mlp(128)
    saved = torch.load(path, map_location="cpu", weights_only=True)["model"]
    net.load_state_dict(saved, strict=False)
    return net.eval().requires_grad_(False)


class Committee(nn.Module):
    def __init__(self, members):
        super().__init__()
        self.members = nn.ModuleList(members)

    @torch.no_grad()
    def forward(self, x, temp):
        return torch.stack([m(x).div(temp).softmax(1) for m in self.members]).mean(0)


@torch.no_grad()
def accuracy(predict, x, y):
    return (predict(x).argmax(1) == y).float().mean().item()


def distil(net, committee, data, steps, g):
    opt = torch.optim.AdamW(net.parameters(), lr=4e-3)
    net.train()
    for step in range(steps):
        x, y = data.draw(128, g)
        soft = committee(x, TEMP)
        logits = net(x)
        kd = F.kl_div(F.log_softmax(logits / TEMP, 1), soft, reduction="batchmean") * TEMP ** 2
        loss = 0.8 * kd + 0.2 * F.cross_entropy(logits, y)
        opt.zero_grad()
        loss.backward()
        opt.step()
        if step % 50 == 0:
            print(f"step {step} kd {kd.item():.3f} loss {loss.item():.3f}")
    return net.eval()


def main():
    data = Rings()
    x_test, y_test = data.draw(1000, torch.Generator().manual_seed(1234))
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"expert_{i}.pt" for i in range(3)]
        for i, path in enumerate(paths):
            expert_job(data, path, seed=60 + i)
        committee = Committee(load_expert(p) for p in paths).eval()
    torch.manual_seed(20)
    net = distil(Mlp(40), committee, data, 250, torch.Generator().manual_seed(70))
    print(f"distilled accuracy {accuracy(net, x_test, y_test):.3f}")


if __name__ == "__main__":
    main()
