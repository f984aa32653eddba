"""Learning without forgetting: second task on a shared trunk, the old head is kept near its recorded answers."""
import copy

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(53)
DIM, PER = 18, 5


def task(k, n):
    g = torch.Generator().manual_seed(100 + k)
    mu = torch.randn(PER, 2, DIM, generator=g)
    y = torch.randint(0, PER, (n,))
    mode = torch.randint(0, 2, (n,))
    return mu[y, mode] + 0.8 * torch.randn(n, DIM), y


class IncNet(nn.Module):
    def __init__(self, hid=40):
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(DIM, hid), nn.ReLU(), nn.Linear(hid, hid), nn.ReLU())
        self.heads = nn.ModuleList()

    def add_head(self):
        self.heads.append(nn.Linear(self.trunk[-2].out_features, PER))

    def forward(self, x):
        h = self.trunk(x)
        return [head(h) for head in self.heads]


class MultiClassCrossEntropy(nn.Module):
    """cross-entropy between softened distributions"""

    def __init__(self, T):
        super().__init__()
        self.T = T

    def forward(self, logits, labels):
        outputs = torch.log_softmax(logits / self.T, dim=1)
        labels = torch.softmax(labels / self.T, dim=1)
        outputs = torch.sum(outputs * labels, dim=1, keepdim=False)
        outputs = -torch.mean(outputs, dim=0, keepdim=False)
        return outputs * self.T ** 2


@torch.no_grad()
def accuracy(net, k):
    st = torch.get_rng_state()
    torch.manual_seed(900 + k)
    x, y = task(k, 1000)
    torch.set_rng_state(st)
    return (net(x)[k].argmax(1) == y).float().mean().item()


class Learner:
    def __init__(self, T=2.0, lam=1.0):
        self.net = IncNet()
        self.old = None
        self.lam = lam
        self.dist = MultiClassCrossEntropy(T)

    def learn(self, k, epochs, lr, n=640, bs=64):
        self.net.add_head()
        x, y = task(k, n)
        loader = DataLoader(TensorDataset(x, y), batch_size=bs, shuffle=True)
        opt = torch.optim.SGD(self.net.parameters(), lr=lr, momentum=0.9)
        for ep in range(epochs):
            logs = [0.0, 0.0]
            for xb, yb in loader:
                outs = self.net(xb)
                cls_loss = F.cross_entropy(outs[k], yb)
                loss = cls_loss
                if self.old is not None:
                    with torch.no_grad():
                        before = self.old(xb)
                    dist_loss = sum(self.dist(outs[j], before[j]) for j in range(k))
                    loss = loss + self.lam * dist_loss
                    logs[1] += dist_loss.item()
                opt.zero_grad()
                loss.backward()
                opt.step()
                logs[0] += cls_loss.item()
            if ep % 3 == 2 or ep == epochs - 1:
                m = len(loader)
                print(f"task {k} epoch {ep + 1} cls {logs[0] / m:.4f} dist {logs[1] / m:.4f}")
        self.old = copy.deepcopy(self.net).eval()
        for p in self.old.parameters():
            p.requires_grad = False


if __name__ == "__main__":
    learner = Learner()
    learner.learn(0, epochs=8, lr=0.05)
    print(f"task 0 accuracy after task 0: {accuracy(learner.net, 0):.3f}")
    learner.learn(1, epochs=9, lr=0.1)
    print(f"task 0 accuracy after task 1: {accuracy(learner.net, 0):.3f}")
    print(f"task 1 accuracy after task 1: {accuracy(learner.net, 1):.3f}")
