# GNN -> MLP: the MLP sees node features only and is taught by the GNN's soft labels on the observed part of the graph
import numpy as np
import torch
import torch.nn.functional as F

rng = np.random.default_rng(4)
torch.manual_seed(4)
N, C, D = 480, 5, 16

y = torch.from_numpy(rng.integers(0, C, N))
same = (y[:, None] == y[None]).numpy()
prob = np.where(same, 0.06, 0.006)
upper = np.triu(rng.random((N, N)) < prob, 1)
A = torch.from_numpy((upper | upper.T).astype(np.float32))
centers = torch.from_numpy(rng.normal(size=(C, D)).astype(np.float32))
X = 0.9 * centers[y] + torch.from_numpy(rng.normal(size=(N, D)).astype(np.float32)) * 1.3

order = torch.from_numpy(rng.permutation(N))
idx_train, idx_obs, idx_test = order[:60], order[:360], order[360:]


def norm_adj(a):
    a = a + torch.eye(len(a))
    d = a.sum(1).rsqrt()
    return d[:, None] * a * d[None]


A_hat = norm_adj(A)


class GCN(torch.nn.Module):
    def __init__(self, hid=48, p=0.4):
        super().__init__()
        self.w1 = torch.nn.Linear(D, hid)
        self.w2 = torch.nn.Linear(hid, C)
        self.p = p

    def forward(self, x, a):
        h = F.dropout(x, self.p, self.training)
        h = F.relu(a @ self.w1(h))
        h = F.dropout(h, self.p, self.training)
        return a @ self.w2(h)


class MLP(torch.nn.Module):
    def __init__(self, hid=48):
        super().__init__()
        self.net = torch.nn.Sequential(
            torch.nn.Linear(D, hid), torch.nn.BatchNorm1d(hid), torch.nn.ReLU(),
            torch.nn.Dropout(0.2), torch.nn.Linear(hid, C))

    def forward(self, x):
        return self.net(x)


def acc(logits, idx):
    return (logits[idx].argmax(-1) == y[idx]).float().mean().item()


def fit_gnn(epochs=120):
    net = GCN()
    optim = torch.optim.Adam(net.parameters(), lr=1e-2, weight_decay=5e-4)
    for _ in range(epochs):
        net.train()
        optim.zero_grad()
        F.cross_entropy(net(X, A_hat)[idx_train], y[idx_train]).backward()
        optim.step()
    net.eval()
    with torch.no_grad():
        out = net(X, A_hat)
    return net, out


def batches(n, size):
    perm = torch.randperm(n)
    for s in range(0, n - size + 1, size):
        yield perm[s:s + size]


def fit_mlp(soft, lam=0.2, epochs=20, size=72):
    net = MLP()
    optim = torch.optim.Adam(net.parameters(), lr=8e-3, weight_decay=1e-4)
    trace = []
    for ep in range(epochs):
        net.train()
        for b in batches(len(idx_obs), size):
            nodes = idx_obs[b]
            out_s = net(X[nodes]).log_softmax(-1)
            loss_t = F.kl_div(out_s, soft[nodes], reduction="batchmean")
            lab = b < len(idx_train)
            loss_l = F.nll_loss(out_s[lab], y[nodes[lab]]) if lab.any() else out_s.new_zeros(())
            loss = lam * loss_l + (1 - lam) * loss_t
            optim.zero_grad()
            loss.backward()
            optim.step()
            trace.append(loss_t.item())
        if ep % 5 == 4:
            print(f"epoch {ep + 1:2d} soft loss {np.mean(trace[-5:]):.4f}")
    net.eval()
    return net


gnn, gnn_out = fit_gnn()
print(f"GNN accuracy train {acc(gnn_out, idx_train):.3f} test {acc(gnn_out, idx_test):.3f}")
mlp = fit_mlp(gnn_out.softmax(-1))
with torch.no_grad():
    mlp_out = mlp(X)
print(f"MLP accuracy observed {acc(mlp_out, idx_obs):.3f} test {acc(mlp_out, idx_test):.3f}")
