"""Offline distillation of a language model from stored top-k teacher probabilities.

For every sequence the eight largest probabilities per position are written to disk in
half precision together with their ids; the remaining mass is kept as one extra bucket.
"""
import os
import tempfile

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.utils.data import DataLoader, Dataset

VOCAB, SEQ, TOP_K = 64, 12, 8


class CausalConvLM(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.emb = nn.Embedding(VOCAB, dim)
        self.conv = nn.Conv1d(dim, dim, 3)
        self.out = nn.Linear(dim, VOCAB)

    def forward(self, ids):
        h = F.pad(self.emb(ids).transpose(1, 2), (2, 0))
        return self.out(F.gelu(self.conv(h)).transpose(1, 2))


def sequences(n, seed):
    g = torch.Generator().manual_seed(seed)
    table = torch.softmax(3 * torch.randn(VOCAB, VOCAB, generator=torch.Generator().manual_seed(4)), -1)
    ids = torch.randint(0, VOCAB, (n, 1), generator=g)
    while ids.size(1) <= SEQ:
        ids = torch.cat([ids, torch.multinomial(table[ids[:, -1]], 1, generator=g)], 1)
    return ids


@torch.no_grad()
def write_store(teacher, ids, path):
    value, index = [], []
    for batch in ids.split(100):
        top = teacher(batch[:, :-1]).softmax(-1).topk(TOP_K, -1)
        value.append(top.values.half())
        index.append(top.indices.to(torch.int16))
    torch.save({"value": torch.cat(value), "index": torch.cat(index)}, path)


class StoredTargets(Dataset):
    def __init__(self, ids, path):
        self.ids = ids
        store = torch.load(path)
        self.value, self.index = store["value"], store["index"]

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, i):
        return self.ids[i], self.value[i].float(), self.index[i].long()


def bucket_kl(logits, value, index):
    """KL over the stored tokens plus one bucket for all the others."""
    rest = (1 - value.sum(-1, keepdim=True)).clamp(min=1e-4)
    target = torch.cat([value, rest], -1)
    target = target / target.sum(-1, keepdim=True)
    logp = logits.log_softmax(-1)
    known = logp.gather(-1, index)
    others = logp.scatter(-1, index, float("-inf")).logsumexp(-1, keepdim=True)
    log_target = target.clamp(min=1e-8).log()
    return (target * (log_target - torch.cat([known, others], -1))).sum(-1).mean()


def main():
    torch.manual_seed(0)
    train, test = sequences(480, 1), sequences(200, 2)
    teacher = CausalConvLM(48)
    opt = torch.optim.Adam(teacher.parameters(), lr=5e-3)
    for _ in range(120):
        rows = train[torch.randint(0, len(train), (48,))]
        loss = F.cross_entropy(teacher(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten())
        opt.zero_grad()
        loss.backward()
        opt.step()
    teacher.eval()

    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "top_k.pt")
        write_store(teacher, train, path)
        print(f"store: {os.path.getsize(path) / 1024:.0f} KiB for {len(train)} sequences")
        loader = DataLoader(StoredTargets(train, path), batch_size=48, shuffle=True,
                            generator=torch.Generator().manual_seed(9))
    student = CausalConvLM(16)
    opt = torch.optim.AdamW(student.parameters(), lr=1e-2)
    for epoch in range(9):
        for ids, value, index in loader:
            logits = student(ids[:, :-1])
            kd = bucket_kl(logits, value, index)
            loss = kd + 0.2 * F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
            opt.zero_grad()
            loss.backward()
            opt.step()
        if epoch % 3 == 2:
            with torch.no_grad():
                ce = F.cross_entropy(student(test[:, :-1]).flatten(0, 1), test[:, 1:].flatten())
            print(f"epoch {epoch} kd {kd.item():.3f} test perplexity {ce.exp().item():.2f}")


if __name__ == "__main__":
    main()
