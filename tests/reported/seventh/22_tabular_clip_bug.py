"""Tabular regression: distil a 3-member MLP ensemble into one small MLP; heavy-tailed targets."""
import torch
from torch import nn
import torch.nn.functional as F

rng = torch.Generator().manual_seed(22)
torch.manual_seed(22)
torch.set_num_threads(1)
config = dict(
    n_num=10, n_cat=3, cardinality=6, members=3,
    teacher=dict(width=96, lr=2e-3, epochs=6),
    student=dict(width=24, lr=0.1, epochs=6),
    batch_size=64, gradient_clipping_norm=1.0, kd=0.6,
)


def table(n):
    num = torch.randn(n, config["n_num"], generator=rng)
    cat = torch.randint(0, config["cardinality"], (n, config["n_cat"]), generator=rng)
    base = torch.sin(num[:, 0] * 2) + num[:, 1] * num[:, 2] + 0.7 * (cat[:, 0] == cat[:, 1]).float()
    spike = torch.tan(3.1 * (torch.rand(n, generator=rng) - 0.5))      # heavy-tailed label noise
    return num, cat, base + 0.3 * spike


class TabMLP(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.emb = nn.ModuleList([nn.Embedding(config["cardinality"], 4) for _ in range(config["n_cat"])])
        d = config["n_num"] + 4 * config["n_cat"]
        self.net = nn.Sequential(nn.Linear(d, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 1))

    def forward(self, num, cat):
        e = [emb(cat[:, i]) for i, emb in enumerate(self.emb)]
        return self.net(torch.cat([num, *e], 1))[:, 0]


class Ensemble(nn.Module):
    def __init__(self, members):
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, num, cat):
        return torch.stack([m(num, cat) for m in self.members]).mean(0)


def minibatches(data):
    for idx in torch.randperm(len(data[0]), generator=rng).split(config["batch_size"]):
        yield [col[idx] for col in data]


def fit_member(data, width, lr, epochs):
    net = TabMLP(width)
    opt = torch.optim.AdamW(net.parameters(), lr=lr, weight_decay=1e-3)
    for _ in range(epochs):
        for num, cat, y in minibatches(data):
            opt.zero_grad()
            F.smooth_l1_loss(net(num, cat), y).backward()
            opt.step()
    return net


@torch.no_grad()
def median_error(net, data):
    return (net.eval()(*data[:2]) - data[2]).abs().median().item()


train, val = table(4000), table(1000)
teacher = Ensemble([fit_member(train, **config["teacher"]) for _ in range(config["members"])])
teacher.eval().requires_grad_(False)
print(f"ensemble median abs error {median_error(teacher, val):.4f}")

student = TabMLP(config["student"]["width"])
optimizer = torch.optim.SGD(student.parameters(), lr=config["student"]["lr"], momentum=0.9)
for epoch in range(config["student"]["epochs"]):
    student.train()
    kd_sum = count = 0.0
    for num, cat, y in minibatches(train):
        with torch.no_grad():
            ref = teacher(num, cat)
        pred = student(num, cat)
        kd = F.mse_loss(pred, ref)
        loss = config["kd"] * kd + (1 - config["kd"]) * F.mse_loss(pred, y)
        optimizer.zero_grad()
        nn.utils.clip_grad_norm_(student.parameters(), config["gradient_clipping_norm"])
        loss.backward()
        optimizer.step()
        kd_sum, count = kd_sum + kd.item(), count + 1
    print(f"epoch {epoch} kd {kd_sum / count:.4f} val median abs error {median_error(student, val):.4f}")
