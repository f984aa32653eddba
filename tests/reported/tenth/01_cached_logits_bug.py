"""Offline distillation: the big CNN is run once, its logits live on disk."""
import os
import tempfile

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.utils.data import DataLoader, Dataset

torch.manual_seed(11)
np.random.seed(11)
CLASSES, BATCH, T, ALPHA = 8, 32, 4.0, 0.8


def make_images(n, protos, seed):
    g = torch.Generator().manual_seed(seed)
    y = torch.randint(0, CLASSES, (n,), generator=g)
    x = protos[y] + 2.0 * torch.randn(n, 1, 12, 12, generator=g)
    return x, y


class Indexed(Dataset):
    def __init__(self, x, y):
        self.x, self.y = x, y

    def __len__(self):
        return len(self.y)

    def __getitem__(self, i):
        return i, self.x[i], self.y[i]


def convnet(width):
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(width, 2 * width, 3, padding=1), nn.BatchNorm2d(2 * width), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Dropout(0.1), nn.Linear(2 * width * 9, CLASSES))


@torch.no_grad()
def accuracy(net, x, y):
    net.eval()
    return (net(x).argmax(1) == y).float().mean().item()


def fit_big(net, loader, epochs):
    opt = torch.optim.Adam(net.parameters(), lr=2e-3)
    for _ in range(epochs):
        net.train()
        for _, x, y in loader:
            opt.zero_grad()
            F.cross_entropy(net(x), y).backward()
            opt.step()


@torch.no_grad()
def dump_logits(net, dataset, path):
    net.eval()
    rows = [net(x).numpy() for _, x, _ in DataLoader(dataset, batch_size=128, shuffle=False)]
    np.save(path, np.concatenate(rows))


def kd_loss(logits, soft, y):
    kl = F.kl_div(F.log_softmax(logits / T, 1), F.softmax(soft / T, 1), reduction="batchmean")
    return ALPHA * T * T * kl + (1 - ALPHA) * F.cross_entropy(logits, y)


def main():
    protos = F.interpolate(torch.randn(CLASSES, 1, 4, 4), size=12, mode="bilinear")
    train = Indexed(*make_images(1024, protos, 1))
    xv, yv = make_images(400, protos, 2)
    loader = DataLoader(train, batch_size=BATCH, shuffle=True)

    big = convnet(24)
    fit_big(big, loader, 4)
    print(f"big net acc {accuracy(big, xv, yv):.3f}")

    with tempfile.TemporaryDirectory() as d:
        path = os.path.join(d, "logits.npy")
        dump_logits(big, train, path)
        cached = torch.from_numpy(np.load(path))

    small = convnet(4)
    opt = torch.optim.SGD(small.parameters(), lr=0.03, momentum=0.9)
    for epoch in range(4):
        small.train()
        total = 0.0
        for step, (idx, x, y) in enumerate(loader):
            soft = cached[step * BATCH:(step + 1) * BATCH]
            loss = kd_loss(small(x), soft, y)
            opt.zero_grad()
            loss.backward()
            opt.step()
            total += loss.item()
        print(f"epoch {epoch} loss {total / len(loader):.3f} acc {accuracy(small, xv, yv):.3f}")


if __name__ == "__main__":
    main()
