"""The data set holds a generator of its own. It is copied into each worker, and every worker draws the same numbers."""

import torch
from torch.utils.data import Dataset

import kdbench


class Wrong(Dataset):
    def __init__(self):
        self.generator = torch.Generator().manual_seed(0)

    def __len__(self):
        return 8

    def __getitem__(self, index):
        return torch.rand(3, generator=self.generator)


class Right(Wrong):
    def __getitem__(self, index):
        return torch.rand(3)  # from torch's own state, which each worker gets a seed of its own for


if __name__ == "__main__":
    print(kdbench.check_workers(Wrong()))
    print(kdbench.check_workers(Right()))
