"""Distil a GRU language model into a smaller one with token-level KL.

The corpus mixes short chat turns with long documents, so every optimizer step
accumulates a window of several micro-batches bucketed by length.
"""
import torch
import torch.nn as nn
import torch.nn.functional as F

PAD, VOCAB = 0, 32
ACCUM, MICRO = 4, 4
TAU, ALPHA = 2.0, 0.8


class GRULM(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.emb = nn.Embedding(VOCAB, width, padding_idx=PAD)
        self.rnn = nn.GRU(width, width, batch_first=True)
        self.out = nn.Linear(width, VOCAB)

    def forward(self, ids):
        return self.out(self.rnn(self.emb(ids))[0])


def markov(seed):
    g = torch.Generator().manual_seed(seed)
    return torch.softmax(3.0 * torch.randn(VOCAB - 1, VOCAB - 1, generator=g), -1)


def sample(table, length, g):
    seq = [int(torch.randint(0, VOCAB - 1, (1,), generator=g))]
    while len(seq) < length:
        seq.append(int(torch.multinomial(table[seq[-1]], 1, generator=g)))
    return torch.tensor(seq) + 1


def make_corpus(n, seed):
    g = torch.Generator().manual_seed(seed)
    chat, docs = markov(1), markov(2)
    corpus = []
    for i in range(n):
        if i % 4 == 3:
            corpus.append(sample(docs, int(torch.randint(20, 28, (1,), generator=g)), g))
        else:
            corpus.append(sample(chat, int(torch.randint(4, 8, (1,), generator=g)), g))
    return corpus


def collate(seqs):
    return nn.utils.rnn.pad_sequence(seqs, batch_first=True, padding_value=PAD)


def bucketed_windows(corpus, steps, seed):
    """Yield lists of ACCUM micro-batches; each micro-batch holds similar lengths."""
    g = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        pick = torch.randperm(len(corpus), generator=g)[: ACCUM * MICRO].tolist()
        pick.sort(key=lambda i: len(corpus[i]))
        yield [collate([corpus[i] for i in pick[k:k + MICRO]]) for k in range(0, len(pick), MICRO)]


def fit_teacher(corpus, steps=80):
    teacher = GRULM(48)
    opt = torch.optim.Adam(teacher.parameters(), lr=6e-3)
    for window in bucketed_windows(corpus, steps, seed=11):
        ids = collate([row for mb in window for row in mb])
        loss = F.cross_entropy(teacher(ids[:, :-1]).transpose(1, 2), ids[:, 1:], ignore_index=PAD)
        opt.zero_grad()
        loss.backward()
        opt.step()
    return teacher.eval().requires_grad_(False)


def token_losses(s_logits, t_logits, labels):
    """Summed distillation loss over the real target tokens, and their mask."""
    mask = labels.ne(PAD)
    kl = F.kl_div(F.log_softmax(s_logits / TAU, -1), F.log_softmax(t_logits / TAU, -1),
                  reduction="none", log_target=True).sum(-1) * TAU ** 2
    ce = F.cross_entropy(s_logits.transpose(1, 2), labels, reduction="none")
    return ((ALPHA * kl + (1 - ALPHA) * ce) * mask).sum(), mask


@torch.no_grad()
def evaluate(student, teacher, corpus):
    ids = collate(corpus)
    labels = ids[:, 1:]
    mask = labels.ne(PAD)
    t, s = F.log_softmax(teacher(ids[:, :-1]), -1), F.log_softmax(student(ids[:, :-1]), -1)
    kl = (t.exp() * (t - s)).sum(-1)
    return (kl * mask).sum() / mask.sum()


def main():
    torch.manual_seed(0)
    corpus, dev = make_corpus(120, seed=3), make_corpus(48, seed=4)
    teacher = fit_teacher(corpus)
    student = GRULM(20)
    optimizer = torch.optim.AdamW(student.parameters(), lr=8e-3, weight_decay=0.01)
    for step, window in enumerate(bucketed_windows(corpus, 75, seed=12)):
        n_tokens = sum(mb[:, 1:].ne(PAD).sum() for mb in window)
        logged = 0.0
        for mb in window:
            inputs, labels = mb[:, :-1], mb[:, 1:]
            with torch.no_grad():
                t_logits = teacher(inputs)
            loss, mask = token_losses(student(inputs), t_logits, labels)
            loss = loss / n_tokens
            loss.backward()
            logged += loss.item()
        nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 25 == 24:
            print(f"step {step + 1:3d}  tokens {int(n_tokens):4d}  loss {logged:.4f}  "
                  f"dev KL/token {evaluate(student, teacher, dev):.4f}")


if __name__ == "__main__":
    main()
