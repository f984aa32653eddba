"""What the scripts for KD_Lib share: two networks, data, and the vision half of the package, as it was published.

The package's text half needs names that transformers and torchtext no longer have, so an empty module stands for it.
"""

import os
import sys
import tempfile
import types
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

text = types.ModuleType("KD_Lib.KD.text")
text.BERT2LSTM = text.get_essentials = None
sys.modules[text.__name__] = text
from KD_Lib import KD  # noqa: E402, F401 (the scripts take it from here)


def network(width):
    return nn.Sequential(nn.Linear(16, width), nn.ReLU(), nn.Dropout(0.1), nn.Linear(width, 5))


def parts():
    """Return a teacher, a student, a loader and their optimizers, in a folder of their own."""
    torch.manual_seed(0)
    labels = torch.arange(400) % 5
    data = TensorDataset(torch.randn(5, 16)[labels] + 0.7 * torch.randn(400, 16), labels)
    teacher, student = network(64), network(16)
    optimizers = [torch.optim.SGD(net.parameters(), lr=0.05) for net in (teacher, student)]
    os.chdir(tempfile.mkdtemp())
    Path("models").mkdir()  # the package writes into it
    return teacher, student, DataLoader(data, 40, shuffle=True), optimizers
