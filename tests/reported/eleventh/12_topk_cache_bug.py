"""Offline distillation: the teacher's top-k softened log-probabilities on both
splits are written to memory-mapped files in one pass, then the student is
trained from the files with a shuffling loader.  Every example carries its id in the full data set.
"""
import pathlib
import tempfile

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import ConcatDataset, DataLoader, Dataset, random_split

CLASSES, DIM, TOPK, TAU = 30, 32, 6, 2.0


class Catalogue(Dataset):
    def __init__(self, n=3000):
        g = torch.Generator().manual_seed(31)
        centres = torch.randn(CLASSES, DIM, generator=g)
        self.y = torch.randint(0, CLASSES, (n,), generator=g)
        self.x = centres[self.y] + 1.5 * torch.randn(n, DIM, generator=g)

    def __len__(self):
        return len(self.y)

    def __getitem__(self, i):
        return {"id": i, "x": self.x[i], "y": self.y[i]}


def net(width):
    return nn.Sequential(nn.Linear(DIM, width), nn.SiLU(), nn.Linear(width, CLASSES))


class TopKCache:
    def __init__(self, folder, rows, mode):
        folder = pathlib.Path(folder)
        self.values = np.memmap(folder / "values.f32", np.float32, mode, shape=(rows, TOPK))
        self.indices = np.memmap(folder / "indices.i16", np.int16, mode, shape=(rows, TOPK))

    def write(self, rows, logits):
        top = F.log_softmax(logits / TAU, dim=1).topk(TOPK, dim=1)
        self.values[rows] = top.values.numpy()
        self.indices[rows] = top.indices.numpy().astype(np.int16)

    def read(self, rows):
        rows = rows.numpy()
        return torch.from_numpy(self.values[rows]), torch.from_numpy(self.indices[rows].astype(np.int64))

    def flush(self):
        self.values.flush()
        self.indices.flush()


def dump(teacher, split, folder, rows):
    cache = TopKCache(folder, rows, "w+")
    start = 0
    with torch.no_grad():
        for batch in DataLoader(split, batch_size=128):
            ids = batch["id"].numpy()
            cache.write(slice(start, start + len(ids)), teacher(batch["x"]))
            start += len(ids)
    cache.flush()
    return start


def topk_kd(logits, values, indices):
    """KL over the teacher's top-k classes plus one bucket for all the others."""
    log_q = F.log_softmax(logits / TAU, dim=1).gather(1, indices)
    p, q = values.exp(), log_q.exp()
    p_rest = (1 - p.sum(1)).clamp_min(1e-6)
    q_rest = (1 - q.sum(1)).clamp_min(1e-6)
    kl = (p * (values - log_q)).sum(1) + p_rest * (p_rest / q_rest).log()
    return TAU ** 2 * kl.mean()


@torch.no_grad()
def evaluate(model, split, cache=None):
    b = next(iter(DataLoader(split, batch_size=len(split))))
    logits = model(b["x"])
    kd = topk_kd(logits, *cache.read(b["id"])).item() if cache else 0.0
    return (logits.argmax(1) == b["y"]).float().mean().item(), kd


def main():
    torch.manual_seed(8)
    data = Catalogue()
    train, test = random_split(data, [2400, 600], generator=torch.Generator().manual_seed(1))
    teacher = net(256)
    opt = torch.optim.AdamW(teacher.parameters(), lr=2e-3, weight_decay=0.05)
    for _ in range(4):
        for b in DataLoader(train, batch_size=64, shuffle=True):
            opt.zero_grad()
            F.cross_entropy(teacher(b["x"]), b["y"], label_smoothing=0.05).backward()
            opt.step()
    teacher.eval()
    print(f"teacher accuracy {evaluate(teacher, test)[0]:.3f}")

    with tempfile.TemporaryDirectory() as folder:
        written = dump(teacher, ConcatDataset([train, test]), folder, len(data))
        print(f"cached top-{TOPK} of {written} examples")
        del teacher
        cache = TopKCache(folder, len(data), "r")
        student = net(40)
        opt = torch.optim.SGD(student.parameters(), lr=0.1, momentum=0.9)
        loader = DataLoader(train, batch_size=64, shuffle=True, drop_last=True)
        for epoch in range(4):
            for b in loader:
                logits = student(b["x"])
                kd = topk_kd(logits, *cache.read(b["id"]))
                ce = F.cross_entropy(logits, b["y"])
                loss = 0.6 * kd + 0.4 * ce
                opt.zero_grad()
                loss.backward()
                opt.step()
            acc, test_kd = evaluate(student, test, cache)
            print(f"epoch {epoch} kd {kd.item():.3f} ce {ce.item():.3f} test acc {acc:.3f} test kd {test_kd:.3f}")


if __name__ == "__main__":
    main()
