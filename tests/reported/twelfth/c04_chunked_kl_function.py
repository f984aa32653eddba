"""Memory-lean distillation of an output layer with a large vocabulary.

A custom autograd function walks over the rows in chunks, never keeps the full logits and
computes the gradients for hidden states and output weights during the forward pass.
"""
import torch
import torch.nn as nn

VOCAB, CTX = 300, 4


class ChunkedKL(torch.autograd.Function):
    """Mean over rows of KL(teacher || student), times tau squared."""

    @staticmethod
    def forward(ctx, hidden, weight, t_hidden, t_weight, tau, chunk):
        total = hidden.new_zeros(())
        d_hidden, d_weight = torch.empty_like(hidden), torch.zeros_like(weight)
        n = hidden.size(0)
        for lo in range(0, n, chunk):
            h = hidden[lo:lo + chunk]
            s = (h @ weight.T / tau).log_softmax(-1)
            t = (t_hidden[lo:lo + chunk] @ t_weight.T / tau).log_softmax(-1)
            total += (t.exp() * (t - s)).sum() * tau ** 2 / n
            d_logits = (s.exp() - t.exp()) * tau / n
            d_hidden[lo:lo + chunk] = d_logits @ weight
            d_weight += d_logits.T @ h
        ctx.save_for_backward(d_hidden, d_weight)
        return total

    @staticmethod
    def backward(ctx, grad_output):
        d_hidden, d_weight = ctx.saved_tensors
        return grad_output * d_hidden, grad_output * d_weight, None, None, None, None


class Encoder(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.emb = nn.Embedding(VOCAB, dim)
        self.net = nn.Sequential(nn.Linear(CTX * dim, dim), nn.Tanh(), nn.Linear(dim, dim))
        self.lm_head = nn.Linear(dim, VOCAB, bias=False)

    def hidden(self, ids):
        return self.net(self.emb(ids).flatten(1))


def text(n, seed):
    g = torch.Generator().manual_seed(seed)
    jump = torch.randint(0, VOCAB, (VOCAB, 3), generator=torch.Generator().manual_seed(6))
    choice = torch.multinomial(torch.tensor([0.7, 0.2, 0.1]), n, replacement=True, generator=g).tolist()
    ids = [0]
    for c in choice:
        ids.append(int(jump[ids[-1], c]) if c < 2 else (ids[-1] * 7 + 1) % VOCAB)
    return torch.tensor(ids).unfold(0, CTX + 1, 1)


def fit_teacher(data, steps=120):
    net = Encoder(48)
    opt = torch.optim.Adam(net.parameters(), lr=5e-3)
    for _ in range(steps):
        rows = data[torch.randint(0, len(data), (128,))]
        loss = nn.functional.cross_entropy(net.lm_head(net.hidden(rows[:, :CTX])), rows[:, CTX])
        opt.zero_grad()
        loss.backward()
        opt.step()
    print(f"teacher loss {loss.item():.3f}")
    return net.eval().requires_grad_(False)


def main():
    torch.manual_seed(0)
    data = text(3000, 1)
    teacher, student = fit_teacher(data), Encoder(20)
    opt = torch.optim.Adam(student.parameters(), lr=8e-3)
    for step in range(1, 121):
        rows = data[torch.randint(0, len(data), (96,))]
        ids, target = rows[:, :CTX], rows[:, CTX]
        h = student.hidden(ids)
        kd = ChunkedKL.apply(h, student.lm_head.weight, teacher.hidden(ids), teacher.lm_head.weight, 2.0, 40)
        ce = nn.functional.cross_entropy(student.lm_head(h), target)
        loss = 0.7 * kd + 0.3 * ce
        opt.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(student.parameters(), 2.0)
        opt.step()
        if step % 40 == 0:
            print(f"step {step} kd {kd.item():.3f} ce {ce.item():.3f}")


if __name__ == "__main__":
    main()
