import random
from dataclasses import dataclass
import torch
from torch import nn
from torch.nn import functional as F


@dataclass
class Cfg:
    vocab: int = 18
    max_len: int = 28
    micro: int = 8
    window: int = 4
    steps: int = 90
    lr: float = 4e-3
    seed: int = 52


class TinyLM(nn.Module):
    def __init__(self, vocab, dim):
        super().__init__()
        self.emb = nn.Embedding(vocab, dim)
        self.rnn = nn.GRU(dim, dim, batch_first=True)
        self.out = nn.Linear(dim, vocab)

    def forward(self, ids):
        return self.out(self.rnn(self.emb(ids))[0])


class Corpus:
    """Second-order grammar; id 0 is padding. Length varies a lot between samples."""

    def __init__(self, cfg):
        g = torch.Generator().manual_seed(cfg.seed)
        self.cfg = cfg
        self.table = torch.softmax(3.0 * torch.randn(cfg.vocab, cfg.vocab, cfg.vocab - 1, generator=g), -1)

    def batch(self, n):
        c = self.cfg
        lens = torch.tensor([random.choice([5, 7, 10, c.max_len]) for _ in range(n)])
        ids = torch.zeros(n, int(lens.max()), dtype=torch.long)
        ids[:, :2] = torch.randint(1, c.vocab, (n, 2))
        for t in range(2, ids.size(1)):
            ids[:, t] = 1 + torch.multinomial(self.table[ids[:, t - 2], ids[:, t - 1]], 1).squeeze(1)
        ids[torch.arange(ids.size(1))[None] >= lens[:, None]] = 0
        return ids


class DistilTrainer:
    def __init__(self, student, teacher, cfg):
        self.student, self.teacher, self.cfg = student, teacher.eval().requires_grad_(False), cfg
        self.optim = torch.optim.Adam(student.parameters(), lr=cfg.lr)

    def compute_loss(self, ids, num_items):
        keep = (ids[:, 1:] != 0).float()
        s = F.log_softmax(self.student(ids[:, :-1]), -1)
        with torch.no_grad():
            t = F.log_softmax(self.teacher(ids[:, :-1]), -1)
        per_token = F.kl_div(s, t, log_target=True, reduction="none").sum(-1)
        return (per_token * keep).sum() / num_items

    def fit(self, corpus):
        for step in range(self.cfg.steps):
            window = [corpus.batch(self.cfg.micro) for _ in range(self.cfg.window)]
            total = sum((b[:, 1:] != 0).sum().item() for b in window)
            self.optim.zero_grad()
            shown = 0.0
            for ids in window:
                loss = self.compute_loss(ids, total)
                loss.backward()
                shown += loss.item()
            self.optim.step()
            if step % 15 == 0:
                print(step, round(shown, 4))


@torch.no_grad()
def nll(model, corpus):
    ids = corpus.batch(256)
    lp = F.cross_entropy(model(ids[:, :-1]).transpose(1, 2), ids[:, 1:], ignore_index=0)
    return lp.item()


def main(cfg):
    torch.manual_seed(cfg.seed)
    random.seed(cfg.seed)
    corpus = Corpus(cfg)
    teacher = TinyLM(cfg.vocab, 96)
    opt = torch.optim.Adam(teacher.parameters(), lr=6e-3)
    for _ in range(150):
        ids = corpus.batch(48)
        opt.zero_grad()
        F.cross_entropy(teacher(ids[:, :-1]).transpose(1, 2), ids[:, 1:], ignore_index=0).backward()
        opt.step()
    student = TinyLM(cfg.vocab, 40)
    print("teacher nll", nll(teacher, corpus), "student before", nll(student, corpus))
    DistilTrainer(student, teacher, cfg).fit(corpus)
    print("student nll", nll(student, corpus))


if __name__ == "__main__":
    main(Cfg())
