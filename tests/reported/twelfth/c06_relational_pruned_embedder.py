"""Metric learning: a student cut out of its teacher learns the teacher's relations.

The student takes over the teacher's stem (kept frozen, batch statistics included) and
one of its blocks. A projector with its own learning rate serves a feature term.
"""
import torch
import torch.nn as nn
import torch.nn.functional as F

DIM, IDENTITIES = 20, 24


def stem(width):
    return nn.Sequential(nn.Linear(DIM, width), nn.BatchNorm1d(width), nn.ReLU())


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.fc, self.bn = nn.Linear(width, width), nn.BatchNorm1d(width)

    def forward(self, x):
        return x + F.relu(self.bn(self.fc(x)))


class Embedder(nn.Module):
    def __init__(self, width, depth, out):
        super().__init__()
        self.stem = stem(width)
        self.blocks = nn.Sequential(*[Block(width) for _ in range(depth)])
        self.head = nn.Linear(width, out)

    def forward(self, x):
        return self.head(self.blocks(self.stem(x)))


class PrunedEmbedder(Embedder):
    def __init__(self, teacher, out):
        super().__init__(width=32, depth=1, out=out)
        self.stem.load_state_dict(teacher.stem.state_dict())
        self.blocks[0].load_state_dict(teacher.blocks[2].state_dict())
        self.stem.requires_grad_(False)

    def train(self, mode=True):
        super().train(mode)
        self.stem.eval()
        return self


CENTRES = torch.randn(IDENTITIES, DIM, generator=torch.Generator().manual_seed(2))


def people(n):
    y = torch.randint(0, IDENTITIES, (n,))
    return CENTRES[y] + 0.8 * torch.randn(n, DIM), y


def distances(e):
    d = torch.cdist(e, e)
    off = ~torch.eye(len(e), dtype=torch.bool)
    return d / d[off].mean(), off


def angles(e):
    diff = F.normalize(e[None] - e[:, None], dim=-1, eps=1e-6)
    return torch.einsum("ijd,ikd->ijk", diff, diff)


def relational_loss(s, t):
    (ds, off), (dt, _) = distances(s), distances(t)
    return F.smooth_l1_loss(ds[off], dt[off]) + 2 * F.smooth_l1_loss(angles(s), angles(t))


@torch.no_grad()
def recall(net, x, y):
    mode = net.training
    net.eval()
    d = torch.cdist(net(x), net(x)).fill_diagonal_(float("inf"))
    net.train(mode)
    return (y[d.argmin(1)] == y).float().mean().item()


def fit_teacher(steps=150):
    net, classes = Embedder(32, 3, 16), nn.Linear(16, IDENTITIES)
    opt = torch.optim.Adam([*net.parameters(), *classes.parameters()], lr=4e-3)
    for _ in range(steps):
        x, y = people(64)
        loss = F.cross_entropy(classes(net(x)), y)
        opt.zero_grad()
        loss.backward()
        opt.step()
    return net.eval().requires_grad_(False)


def main():
    torch.manual_seed(0)
    teacher, test = fit_teacher(), people(400)
    student = PrunedEmbedder(teacher, out=6).train()
    projector = nn.Linear(6, 16)
    opt = torch.optim.AdamW([
        {"params": [p for p in student.parameters() if p.requires_grad], "lr": 5e-3},
        {"params": projector.parameters(), "lr": 2e-2, "weight_decay": 0.0}])
    print(f"teacher R@1 {recall(teacher, *test):.3f}, student R@1 {recall(student, *test):.3f} before")
    for step in range(1, 101):
        x, _ = people(32)
        s, t = student(x), teacher(x)
        relation = relational_loss(s, t)
        feature = 1 - F.cosine_similarity(projector(s), t).mean()
        loss = 10 * relation + feature
        opt.zero_grad()
        loss.backward()
        opt.step()
        if step % 25 == 0:
            print(f"step {step} relation {relation.item():.4f} feature {feature.item():.3f} "
                  f"R@1 {recall(student, *test):.3f}")


if __name__ == "__main__":
    main()
