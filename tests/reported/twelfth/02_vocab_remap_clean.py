"""Distil a word-level language model whose tokenizer orders the vocabulary differently.

Teacher and student share the same words, but each tokenizer was built with its own
id order, so both the inputs and the teacher's output columns have to be re-indexed.
"""
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F


@dataclass
class Config:
    n_words: int = 48
    context: int = 3
    teacher_dim: int = 64
    student_dim: int = 16
    teacher_steps: int = 200
    student_steps: int = 160
    batch: int = 96
    tau: float = 1.5
    kd_weight: float = 0.5


class Tokenizer:
    """Words are given ids in the order of the list it is built from."""

    def __init__(self, words):
        self.words = list(words)
        self.index = {w: i for i, w in enumerate(self.words)}

    def __len__(self):
        return len(self.words)

    def encode(self, text):
        return [self.index[w] for w in text]


class WindowLM(nn.Module):
    def __init__(self, vocab, context, dim):
        super().__init__()
        self.emb = nn.Embedding(vocab, dim)
        self.body = nn.Sequential(nn.Linear(context * dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))
        self.head = nn.Linear(dim, vocab)

    def forward(self, ids):
        return self.head(self.body(self.emb(ids).flatten(1)))


def write_text(cfg, words, length, seed):
    """A text whose next word depends mostly on the last word and a little on the one before."""
    table = torch.randn(cfg.n_words, cfg.n_words, generator=torch.Generator().manual_seed(99))
    g = torch.Generator().manual_seed(seed)
    ids = [0, 1, 2]
    for _ in range(length):
        p = torch.softmax(2.5 * table[ids[-1]] + 0.7 * table[ids[-2]].roll(5), 0)
        ids.append(int(torch.multinomial(p, 1, generator=g)))
    return [words[i] for i in ids]


def windows(ids, context):
    x = torch.tensor(ids).unfold(0, context + 1, 1)
    return x[:, :context], x[:, context]


def column_map(src, dst):
    """Entry i of the result is the id in `dst` of the word that `src` calls i."""
    return torch.tensor([dst.index[w] for w in src.words])


def train_teacher(cfg, text, tok):
    model = WindowLM(len(tok), cfg.context, cfg.teacher_dim)
    x, y = windows(tok.encode(text), cfg.context)
    opt = torch.optim.Adam(model.parameters(), lr=4e-3)
    for _ in range(cfg.teacher_steps):
        pick = torch.randint(0, len(x), (cfg.batch,))
        loss = F.cross_entropy(model(x[pick]), y[pick])
        opt.zero_grad()
        loss.backward()
        opt.step()
    print(f"teacher train loss {loss.item():.3f}")
    return model.eval()


def perplexity(model, tok, text, cfg):
    x, y = windows(tok.encode(text), cfg.context)
    with torch.no_grad():
        return F.cross_entropy(model(x), y).exp().item()


def main(cfg=Config()):
    torch.manual_seed(7)
    words = [f"w{i:02d}" for i in range(cfg.n_words)]
    teacher_tok = Tokenizer(words)
    student_tok = Tokenizer([words[i] for i in torch.randperm(cfg.n_words).tolist()])
    train_text, test_text = write_text(cfg, words, 3000, 1), write_text(cfg, words, 1000, 2)

    teacher = train_teacher(cfg, train_text, teacher_tok)
    print(f"teacher test perplexity {perplexity(teacher, teacher_tok, test_text, cfg):.2f}")

    student = WindowLM(len(student_tok), cfg.context, cfg.student_dim)
    s2t = column_map(student_tok, teacher_tok)
    x, y = windows(student_tok.encode(train_text), cfg.context)
    opt = torch.optim.AdamW(student.parameters(), lr=8e-3)
    sched = torch.optim.lr_scheduler.CosineAnnealingLR(opt, cfg.student_steps)

    for step in range(1, cfg.student_steps + 1):
        pick = torch.randint(0, len(x), (cfg.batch,))
        ids, target = x[pick], y[pick]
        with torch.no_grad():
            t_prob = torch.softmax(teacher(s2t[ids]) / cfg.tau, -1)[:, s2t]
        logits = student(ids)
        kd = F.kl_div(torch.log_softmax(logits / cfg.tau, -1), t_prob, reduction="batchmean") * cfg.tau ** 2
        ce = F.cross_entropy(logits, target)
        loss = cfg.kd_weight * kd + (1 - cfg.kd_weight) * ce
        opt.zero_grad()
        loss.backward()
        opt.step()
        sched.step()
        if step % 40 == 0:
            print(f"step {step}: ce {ce.item():.3f} kd {kd.item():.3f}")
    print(f"student test perplexity {perplexity(student, student_tok, test_text, cfg):.2f}")


if __name__ == "__main__":
    main()
