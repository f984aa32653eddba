"""Born-again style training with a bank of stored soft labels."""
import torch
import torch.nn as nn
import torch.nn.functional as F

torch.manual_seed(411)
DIM, CLASSES, N_TRAIN, N_TEST = 20, 7, 2100, 700
centres = torch.randn(CLASSES, 2, DIM)


def sample(n):
    y = torch.randint(CLASSES, (n,))
    mode = torch.randint(2, (n,))
    return centres[y, mode] + 1.1 * torch.randn(n, DIM), y


class Stream:
    """Reshuffles on every pass; hands out (where, inputs, labels)."""

    def __init__(self, x, y, size):
        self.x, self.y, self.size = x, y, size

    def __iter__(self):
        order = torch.randperm(len(self.x))
        for part in order.split(self.size):
            where = torch.arange(len(part))
            yield where, self.x[part], self.y[part]


class SoftBank:
    def __init__(self, net, x, size=256):
        net.eval()
        with torch.no_grad():
            self.rows = torch.cat([net(c) for c in x.split(size)])

    def __getitem__(self, where):
        return self.rows[where]


def mlp(*widths):
    mods = []
    for a, b in zip(widths[:-1], widths[1:]):
        mods += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*mods[:-1])


@torch.no_grad()
def accuracy(net, x, y):
    net.eval()
    return (net(x).argmax(1) == y).float().mean().item()


x_tr, y_tr = sample(N_TRAIN)
x_te, y_te = sample(N_TEST)

parent = mlp(DIM, 192, 96, CLASSES)
opt = torch.optim.Adam(parent.parameters(), lr=2e-3, weight_decay=1e-4)
for epoch in range(6):
    parent.train()
    for _, xb, yb in Stream(x_tr, y_tr, 64):
        opt.zero_grad()
        F.cross_entropy(parent(xb), yb).backward()
        opt.step()
print(f"parent {accuracy(parent, x_te, y_te):.3f}")

bank = SoftBank(parent, x_tr)
child = mlp(DIM, 24, CLASSES)
opt = torch.optim.Adam(child.parameters(), lr=3e-3)
TAU, MIX = 3.0, 0.7
for epoch in range(10):
    child.train()
    running = 0.0
    for where, xb, yb in Stream(x_tr, y_tr, 64):
        out = child(xb)
        soft = F.softmax(bank[where] / TAU, dim=1)
        kd = F.kl_div(F.log_softmax(out / TAU, dim=1), soft, reduction="batchmean") * TAU ** 2
        loss = MIX * kd + (1 - MIX) * F.cross_entropy(out, yb)
        opt.zero_grad()
        loss.backward()
        opt.step()
        running += kd.item()
    print(f"epoch {epoch} kd {running / (N_TRAIN // 64):.3f} child {accuracy(child, x_te, y_te):.3f}")
