"""Data, metrics and checkpoints."""

import os
import warnings

import torch
from torch.utils.data import DataLoader, Dataset


class Patterns(Dataset):
    """Every class is a coarse colour pattern; samples are noisy copies of it."""

    def __init__(self, size, num_classes, seed):
        g = torch.Generator().manual_seed(seed)
        coarse = torch.randn(num_classes, 3, 4, 4, generator=g)
        self.targets = torch.randint(0, num_classes, (size,), generator=g)
        clean = coarse.repeat_interleave(8, 2).repeat_interleave(8, 3)[self.targets]
        self.images = clean + 1.2 * torch.randn(size, 3, 32, 32, generator=g)

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, i):
        return self.images[i], self.targets[i]


def get_loaders(num_classes, batch_size):
    data = Patterns(480, num_classes, seed=3)
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(11)).tolist()
    train_ids, val_ids = order[:352], order[352:]
    train = DataLoader(torch.utils.data.Subset(data, train_ids), batch_size, shuffle=True, drop_last=True)
    val = DataLoader(torch.utils.data.Subset(data, val_ids), batch_size)
    return train, val


@torch.no_grad()
def evaluate(model, loader):
    model.eval()
    hits = total = 0
    for x, y in loader:
        hits += (model(x).argmax(1) == y).sum().item()
        total += len(y)
    return 100.0 * hits / total


def save_checkpoint(model, folder, name):
    torch.save({"model": model.state_dict()}, os.path.join(folder, name + ".pth"))


def load_checkpoint(model, folder, name):
    path = os.path.join(folder, name + ".pth")
    if not os.path.isfile(path):
        warnings.warn(f"checkpoint {path} not found")
        return model
    model.load_state_dict(torch.load(path, map_location="cpu")["model"])
    return model
