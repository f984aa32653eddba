"""A small language model is distilled over two processes; each one divides by the answer tokens of its own batch."""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel as DDP

WORDS, LENGTH, T = 24, 16, 1.0


class LM(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.embed = nn.Embedding(WORDS, width)
        self.mix = nn.GRU(width, width, batch_first=True)
        self.head = nn.Linear(width, WORDS)

    def forward(self, ids):
        return self.head(self.mix(self.embed(ids))[0])


def batch(draw, size=8):
    """Ids (B, L), and labels with -100 for the prompt and the padding."""
    ids = torch.randint(1, WORDS, (size, LENGTH), generator=draw)
    labels = ids.clone()
    for row, end in enumerate(torch.randint(6, LENGTH + 1, (size,), generator=draw).tolist()):
        ids[row, end:] = 0
        labels[row, end:] = -100
    labels[:, :3] = -100
    return ids, labels


dist.init_process_group("gloo")
draw = torch.Generator().manual_seed(dist.get_rank())
torch.manual_seed(0)
teacher = LM(48)
fit = torch.optim.Adam(teacher.parameters(), lr=1e-2)
shared = torch.Generator().manual_seed(9)
for _ in range(5):
    ids, labels = batch(shared)
    fit.zero_grad()
    F.cross_entropy(teacher(ids)[:, :-1].flatten(0, 1), labels[:, 1:].flatten()).backward()
    fit.step()
teacher.eval().requires_grad_(False)

student = DDP(LM(16))
optimizer = torch.optim.AdamW(student.parameters(), lr=3e-3)
for step in range(40):
    ids, labels = batch(draw)
    with torch.no_grad():
        t = teacher(ids)[:, :-1]
    s = student(ids)[:, :-1]
    targets = labels[:, 1:]
    mask = targets != -100
    count = mask.sum()
    kl = F.kl_div(F.log_softmax(s / T, -1), F.softmax(t / T, -1), reduction="none").sum(-1)
    ce = F.cross_entropy(s.flatten(0, 1), targets.flatten(), ignore_index=-100, reduction="sum") / count
    loss = 0.5 * ce + 0.5 * (kl * mask).sum() / count
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
dist.destroy_process_group()
