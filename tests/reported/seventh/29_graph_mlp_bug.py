"""Graph-less student: a GCN teacher on a block-model graph distilled into an MLP (transductive soft labels)."""
import torch
import torch.nn as nn
import torch.nn.functional as F

torch.manual_seed(29)
torch.set_num_threads(1)
gen = torch.Generator().manual_seed(29)
NODES, BLOCKS, DIM = 900, 6, 60


def block_graph():
    y = torch.randint(0, BLOCKS, (NODES,), generator=gen)
    p = torch.where(y[:, None] == y[None], 0.03, 0.004)
    upper = torch.triu(torch.rand(NODES, NODES, generator=gen) < p, 1).float()
    adj = upper + upper.T + torch.eye(NODES)
    d = adj.sum(1).rsqrt()
    x = 0.35 * torch.randn(BLOCKS, DIM, generator=gen)[y] + torch.randn(NODES, DIM, generator=gen)
    order = torch.randperm(NODES, generator=gen)
    masks = {}
    for name, part in zip(("train", "val", "test"), order.split([120, 180, 600])):
        masks[name] = torch.zeros(NODES, dtype=torch.bool)
        masks[name][part] = True
    return x, y, d[:, None] * adj * d[None], masks


class GCN(nn.Module):
    def __init__(self, hidden=32, drop=0.5):
        super().__init__()
        self.a, self.b, self.drop = nn.Linear(DIM, hidden), nn.Linear(hidden, BLOCKS), nn.Dropout(drop)

    def forward(self, x, adj):
        return adj @ self.b(self.drop(F.relu(adj @ self.a(self.drop(x)))))


class MLP(nn.Module):
    def __init__(self, hidden=64, drop=0.2):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(DIM, hidden), nn.ReLU(), nn.Dropout(drop), nn.Linear(hidden, BLOCKS))

    def forward(self, x, adj=None):
        return self.net(x)


@torch.no_grad()
def accuracies(net, x, adj, y, masks):
    net.eval()
    hit = (net(x, adj).argmax(1) == y).float()
    return {k: round(hit[m].mean().item(), 3) for k, m in masks.items()}


x, y, adj, masks = block_graph()
train = masks["train"]

teacher = GCN()
opt = torch.optim.Adam(teacher.parameters(), lr=1e-2, weight_decay=5e-4)
for epoch in range(80):
    teacher.train()
    opt.zero_grad()
    F.cross_entropy(teacher(x, adj)[train], y[train]).backward()
    opt.step()
print("teacher", accuracies(teacher, x, adj, y, masks))
teacher.eval().requires_grad_(False)
with torch.no_grad():
    soft = F.log_softmax(teacher(x, adj), dim=1)

student, lam = MLP(), 0.5
opt = torch.optim.Adam(student.parameters(), lr=5e-3, weight_decay=5e-4)
for epoch in range(1, 401):
    student.train()
    logits = student(x)
    label_loss = F.cross_entropy(logits, y)
    soft_loss = F.kl_div(F.log_softmax(logits, dim=1), soft, reduction="batchmean", log_target=True)
    opt.zero_grad()
    (lam * label_loss + (1 - lam) * soft_loss).backward()
    opt.step()
    if epoch % 80 == 0:
        print(f"epoch {epoch} label {label_loss.item():.4f} soft {soft_loss.item():.4f}",
              accuracies(student, x, adj, y, masks))
