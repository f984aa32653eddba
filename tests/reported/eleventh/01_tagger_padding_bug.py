"""Token tagging on variable-length messages: a BiGRU teacher is distilled into
a smaller one-directional GRU student.  Sequences are padded per batch and
packed for the recurrent layer; the distillation term is a mean over real tokens.
"""
import random

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence, pad_sequence
from torch.utils.data import DataLoader

PAD, VOCAB, TAGS, IGNORE = 0, 40, 6, -100


def make_corpus(n, seed, noise):
    g = torch.Generator().manual_seed(seed)
    table = torch.Generator().manual_seed(99)
    own = torch.randint(0, 3, (VOCAB,), generator=table)
    ctx = torch.randint(0, 2, (VOCAB,), generator=table)
    out = []
    for _ in range(n):
        length = int(torch.randint(3, 26, (1,), generator=g))
        tok = torch.randint(1, VOCAB, (length,), generator=g)
        prev = torch.cat([tok.new_tensor([1]), tok[:-1]])
        tag = own[tok] * 2 + ctx[prev]
        flip = torch.rand(length, generator=g) < noise
        tag = torch.where(flip, torch.randint(0, TAGS, (length,), generator=g), tag)
        out.append((tok, tag))
    return out


def collate(items):
    toks, tags = zip(*items)
    return {
        "tokens": pad_sequence(toks, batch_first=True, padding_value=PAD),
        "tags": pad_sequence(tags, batch_first=True, padding_value=IGNORE),
        "lengths": torch.tensor([len(t) for t in toks]),
    }


class Tagger(nn.Module):
    def __init__(self, emb, hidden, bidirectional):
        super().__init__()
        self.emb = nn.Embedding(VOCAB, emb, padding_idx=PAD)
        self.rnn = nn.GRU(emb, hidden, batch_first=True, bidirectional=bidirectional)
        self.out = nn.Linear(hidden * (2 if bidirectional else 1), TAGS)

    def forward(self, tokens, lengths):
        lengths, order = lengths.sort(descending=True)
        packed = pack_padded_sequence(self.emb(tokens[order]), lengths, batch_first=True)
        hidden, lengths = pad_packed_sequence(self.rnn(packed)[0], batch_first=True)
        mask = torch.arange(hidden.size(1))[None, :] < lengths[:, None]
        restore = order.argsort()
        return self.out(hidden)[restore], mask


def hard_loss(logits, tags):
    return F.cross_entropy(logits.flatten(0, 1), tags.flatten(), ignore_index=IGNORE)


def soft_loss(student, teacher, mask, tau):
    log_q = F.log_softmax(student / tau, dim=-1)
    log_p = F.log_softmax(teacher / tau, dim=-1)
    per_token = (log_p.exp() * (log_p - log_q)).sum(-1)
    return tau ** 2 * per_token.masked_fill(~mask, 0.0).sum() / mask.sum()


@torch.no_grad()
def accuracy(model, loader):
    model.eval()
    hit = total = 0
    for b in loader:
        logits, _ = model(b["tokens"], b["lengths"])
        real = b["tags"] != IGNORE
        hit += (logits.argmax(-1)[real] == b["tags"][real]).sum().item()
        total += real.sum().item()
    return hit / total


def main():
    random.seed(0)
    torch.manual_seed(0)
    train = DataLoader(make_corpus(1280, 1, 0.15), batch_size=32, shuffle=True, collate_fn=collate)
    small = DataLoader(make_corpus(640, 2, 0.35), batch_size=32, shuffle=True, collate_fn=collate)
    test = DataLoader(make_corpus(400, 3, 0.0), batch_size=100, collate_fn=collate)

    teacher = Tagger(32, 40, True)
    opt = torch.optim.Adam(teacher.parameters(), lr=8e-3)
    for _ in range(3):
        for b in train:
            logits, _ = teacher(b["tokens"], b["lengths"])
            loss = hard_loss(logits, b["tags"])
            opt.zero_grad()
            loss.backward()
            opt.step()
    teacher.eval().requires_grad_(False)
    print(f"teacher accuracy {accuracy(teacher, test):.3f}")

    student = Tagger(16, 24, False)
    opt = torch.optim.Adam(student.parameters(), lr=8e-3)
    step = 0
    for _ in range(4):
        student.train()
        for b in small:
            with torch.no_grad():
                target, _ = teacher(b["tokens"], b["lengths"])
            logits, mask = student(b["tokens"], b["lengths"])
            kd = soft_loss(logits, target, mask, tau=2.0)
            loss = 0.2 * hard_loss(logits, b["tags"]) + 0.8 * kd
            opt.zero_grad()
            loss.backward()
            opt.step()
            step += 1
            if step % 20 == 0:
                print(f"step {step} loss {loss.item():.4f} kd {kd.item():.4f}")
    print(f"student accuracy {accuracy(student, test):.3f}")


if __name__ == "__main__":
    main()
