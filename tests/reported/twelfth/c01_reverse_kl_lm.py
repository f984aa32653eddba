"""Mode-seeking distillation of a next-token model.

The student minimises KL(student || teacher) on variable-length sequences; a window of
micro-batches is accumulated and normalised once by the window's number of tokens.
"""
import torch
import torch.nn as nn

VOCAB, PAD_ID = 20, -1


class BigramMLP(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.emb = nn.Embedding(VOCAB, dim)
        self.ff = nn.Sequential(nn.Linear(2 * dim, 2 * dim), nn.ReLU(), nn.Linear(2 * dim, VOCAB))

    def forward(self, ids):
        h = self.emb(ids.clamp(min=0))
        before = torch.cat([torch.zeros_like(h[:, :1]), h[:, :-1]], 1)
        return self.ff(torch.cat([h, before], -1))


def corpus(n, seed):
    g = torch.Generator().manual_seed(seed)
    table = torch.softmax(2.2 * torch.randn(VOCAB, VOCAB, generator=torch.Generator().manual_seed(1)), -1)
    ids = torch.randint(0, VOCAB, (n, 1), generator=g)
    for _ in range(23):
        ids = torch.cat([ids, torch.multinomial(table[ids[:, -1]], 1, generator=g)], 1)
    length = torch.randint(4, 25, (n, 1), generator=g)
    return ids.masked_fill(torch.arange(24)[None] >= length, PAD_ID)


def fit_teacher(data, steps=150):
    net = BigramMLP(32)
    opt = torch.optim.Adam(net.parameters(), lr=5e-3)
    for _ in range(steps):
        rows = data[torch.randint(0, len(data), (48,))]
        loss = nn.functional.cross_entropy(net(rows[:, :-1]).transpose(1, 2), rows[:, 1:], ignore_index=PAD_ID)
        opt.zero_grad()
        loss.backward()
        opt.step()
    return net.eval().requires_grad_(False)


def reverse_kl_sum(s_logits, t_logits, keep):
    s, t = s_logits.log_softmax(-1), t_logits.log_softmax(-1)
    # kl_div(input, target) is KL(target || input): the teacher is the input here.
    kl = nn.functional.kl_div(t, s, log_target=True, reduction="none").sum(-1)
    return kl.masked_fill(~keep, 0.0).sum()


def main():
    torch.manual_seed(0)
    data = corpus(400, 2)
    teacher = fit_teacher(data)
    student = BigramMLP(8)
    opt = torch.optim.Adam(student.parameters(), lr=1e-2)
    for step in range(1, 101):
        micro = data[torch.randint(0, len(data), (32,))].split(8)
        n_tokens = sum(int((m[:, 1:] != PAD_ID).sum()) for m in micro)
        value = 0.0
        for m in micro:
            width = int((m != PAD_ID).sum(1).max())
            ids, keep = m[:, :width - 1], m[:, 1:width] != PAD_ID
            loss = reverse_kl_sum(student(ids), teacher(ids), keep) / n_tokens
            loss.backward()
            value += loss.item()
        opt.step()
        opt.zero_grad()
        if step % 25 == 0:
            print(f"step {step} tokens {n_tokens} reverse KL per token {value:.4f}")


if __name__ == "__main__":
    main()
