"""Offsite tuning: server compresses the frozen middle part, clients later get emulator + adapter."""
import torch
import torch.nn as nn
import torch.nn.functional as F

torch.manual_seed(500)
IN, W, OUT = 16, 40, 6
mu = torch.randn(3, OUT, IN) * 1.1


def client_data(c, n):
    y = torch.randint(OUT, (n,))
    return mu[c, y] + torch.randn(n, IN), y


def mixture(n):
    parts = [client_data(c, n // 3) for c in range(3)]
    return torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.f = nn.Sequential(nn.LayerNorm(W), nn.Linear(W, W), nn.GELU(), nn.Linear(W, W))

    def forward(self, h):
        return h + self.f(h)


class SplitModel(nn.Module):
    def __init__(self, embed, emulator, adapter, head):
        super().__init__()
        self.embed, self.emulator, self.adapter, self.head = embed, emulator, adapter, head

    def forward(self, x):
        return self.head(self.adapter(self.emulator(self.embed(x))))


def blocks(n):
    return nn.Sequential(*[Residual() for _ in range(n)])


@torch.no_grad()
def accuracy(model):
    x, y = mixture(1500)
    return (model(x).argmax(1) == y).float().mean().item()


class Server:
    def __init__(self):
        adapter = nn.Sequential(nn.LayerNorm(W), nn.Linear(W, W), nn.GELU(), nn.Linear(W, W))
        self.full = SplitModel(nn.Linear(IN, W), blocks(5), adapter, nn.Linear(W, OUT))

    def pretrain(self, steps):
        opt = torch.optim.Adam(self.full.parameters(), lr=2e-3)
        for _ in range(steps):
            x, y = mixture(96)
            opt.zero_grad()
            F.cross_entropy(self.full(x), y).backward()
            opt.step()
        self.full.eval().requires_grad_(False)

    def compress(self, steps):
        small = SplitModel(self.full.embed, blocks(1), self.full.adapter, self.full.head)
        opt = torch.optim.Adam(small.emulator.parameters(), lr=4e-3)
        for i in range(steps):
            x, _ = mixture(96)
            h = self.full.embed(x)
            goal = self.full.emulator(h)
            guess = small.adapter(small.emulator(h))
            loss = F.mse_loss(guess, goal)
            opt.zero_grad()
            loss.backward()
            opt.step()
            if i % 75 == 0:
                print(f"compress {i} mse {loss.item():.4f} plugged-in {accuracy(small):.3f}")
        return small


server = Server()
server.pretrain(300)
print("full model", accuracy(server.full))
small = server.compress(300)
print("small model", accuracy(small))
