"""Two small graph networks teach each other on a citation-like graph.

The exchange uses the decoupled form of the distillation loss; labelled nodes enter by a
curriculum that starts with the high-degree ones. Each network has its own optimizer.
"""
import torch
import torch.nn as nn
import torch.nn.functional as F

N, CLASSES, FEATS = 240, 4, 12


def build_graph(seed=0):
    g = torch.Generator().manual_seed(seed)
    y = torch.randint(0, CLASSES, (N,), generator=g)
    p = torch.where(y[:, None] == y[None], 0.06, 0.008)
    adj = (torch.rand(N, N, generator=g) < p).float().triu(1)
    adj = adj + adj.T + torch.eye(N)
    deg = adj.sum(1)
    x = torch.randn(CLASSES, FEATS, generator=g)[y] * 0.5 + torch.randn(N, FEATS, generator=g)
    order = torch.randperm(N, generator=g)
    return x, y, adj / (deg[:, None] * deg[None]).sqrt(), deg, order[:60], order[60:]


class GCN(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.lin1, self.lin2 = nn.Linear(FEATS, width), nn.Linear(width, CLASSES)

    def forward(self, x, adj):
        h = F.dropout(F.relu(adj @ self.lin1(x)), 0.3, self.training)
        return adj @ self.lin2(h)


class SkipGNN(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.own, self.nbr = nn.Linear(FEATS, width), nn.Linear(FEATS, width)
        self.out = nn.Linear(width, CLASSES)

    def forward(self, x, adj):
        h = torch.tanh(self.own(x) + self.nbr(adj @ (adj @ x)))
        return self.out(F.dropout(h, 0.3, self.training))


def decoupled_kd(s, t, y, alpha=1.0, beta=2.0, tau=2.0):
    """Target-class part and non-target part of the divergence, weighted separately."""
    hit = F.one_hot(y, CLASSES).bool()
    ps, pt = (s / tau).softmax(-1), (t / tau).softmax(-1)
    bin_s = torch.stack([ps[hit], 1 - ps[hit]], 1).clamp(min=1e-7)
    bin_t = torch.stack([pt[hit], 1 - pt[hit]], 1).clamp(min=1e-7)
    target_part = F.kl_div(bin_s.log(), bin_t, reduction="batchmean")
    rest_s = s[~hit].view(-1, CLASSES - 1) / tau
    rest_t = t[~hit].view(-1, CLASSES - 1) / tau
    rest_part = F.kl_div(rest_s.log_softmax(-1), rest_t.softmax(-1), reduction="batchmean")
    return (alpha * target_part + beta * rest_part) * tau ** 2


def agreement(s, t, tau=2.0):
    return F.kl_div((s / tau).log_softmax(-1), (t / tau).softmax(-1), reduction="batchmean") * tau ** 2


def main():
    torch.manual_seed(0)
    x, y, adj, deg, labelled, rest = build_graph()
    labelled = labelled[deg[labelled].argsort(descending=True)]
    nets = [GCN(16), SkipGNN(8)]
    opts = [torch.optim.Adam(nets[0].parameters(), lr=1e-2, weight_decay=5e-4),
            torch.optim.RMSprop(nets[1].parameters(), lr=3e-3)]
    for step in range(1, 121):
        share = min(1.0, 0.3 + step / 80)
        known = labelled[:int(share * len(labelled))]
        unlabelled = rest[torch.randint(0, len(rest), (80,))]
        logits = [net(x, adj) for net in nets]
        for k in (0, 1):
            own, peer = logits[k], logits[1 - k].detach()
            loss = F.cross_entropy(own[known], y[known])
            loss = loss + 0.5 * decoupled_kd(own[known], peer[known], y[known])
            loss = loss + 0.5 * agreement(own[unlabelled], peer[unlabelled])
            opts[k].zero_grad()
            loss.backward()
        for opt in opts:
            opt.step()
        if step % 30 == 0:
            with torch.no_grad():
                accs = []
                for net in nets:
                    net.eval()
                    accs.append((net(x, adj)[rest].argmax(-1) == y[rest]).float().mean().item())
                    net.train()
            print(f"step {step} labelled {len(known)} loss {loss.item():.3f} accuracy {accs[0]:.3f} {accs[1]:.3f}")


if __name__ == "__main__":
    main()
