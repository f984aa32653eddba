"""Sparse teacher records (top-k log-probabilities) drive a next-token student."""
import torch
import torch.nn as nn
import torch.nn.functional as F

torch.manual_seed(555)
VOCAB, LENGTH, TOPK, BATCH = 30, 16, 6, 32
transition = torch.softmax(1.6 * torch.randn(VOCAB, VOCAB), -1)


def sample_sequences(n):
    seq = [torch.randint(VOCAB, (n,))]
    for _ in range(LENGTH - 1):
        seq.append(torch.multinomial(transition[seq[-1]], 1)[:, 0])
    return torch.stack(seq, 1)


class Predictor(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.table = nn.Embedding(VOCAB, width)
        self.mix = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, VOCAB))

    def forward(self, ids):
        return self.mix(self.table(ids))


class TeacherServer:
    """Answers with the k best tokens only, as an inference engine would."""

    def __init__(self, net, k):
        self.net, self.k = net.eval(), k

    @torch.no_grad()
    def __call__(self, ids):
        return self.net(ids).log_softmax(-1).topk(self.k, dim=-1)


def sparse_forward_kl(logits, record, eps=1e-6):
    logq = logits.log_softmax(-1).gather(-1, record.indices)
    logp = record.values
    per_token = (logp.exp() * (logp - logq)).sum(-1)
    return per_token.clamp_min(0).mean()


@torch.no_grad()
def report(net, server, ids):
    q = net(ids).log_softmax(-1)
    p = server.net(ids).log_softmax(-1)
    idx = p.topk(TOPK, -1).indices
    return dict(nll=F.nll_loss(q[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).item(),
                full_kl=F.kl_div(q, p, log_target=True, reduction="none").sum(-1).mean().item(),
                head_mass=(p.gather(-1, idx).exp().sum(-1).mean().item(), q.gather(-1, idx).exp().sum(-1).mean().item()))


def optimise(net, loss_of, steps, lr):
    opt = torch.optim.Adam(net.parameters(), lr=lr)
    for i in range(steps):
        loss = loss_of(sample_sequences(BATCH))
        opt.zero_grad()
        loss.backward()
        opt.step()
        if i % 60 == 0:
            print(f"  {i} {loss.item():.4f}")


big = Predictor(96)
optimise(big, lambda ids: F.cross_entropy(big(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten()), 240, 6e-3)
server = TeacherServer(big, TOPK)
probe = sample_sequences(200)
small = Predictor(16)
print("teacher", report(big, server, probe))
print("before", report(small, server, probe))


def objective(ids):
    logits = small(ids[:, :-1])
    data = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
    return sparse_forward_kl(logits, server(ids[:, :-1])) + 0.3 * data


optimise(small, objective, 400, 8e-3)
print("after", report(small, server, probe))
