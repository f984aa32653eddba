"""Offline soft-target bank for a recommender: big two-tower teacher, small student."""
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.utils.data import Dataset, DataLoader
SEED, USERS, ITEMS, TAU = 33, 2400, 60, 1.5
torch.manual_seed(SEED)
torch.set_num_threads(1)


class Interactions(Dataset):
    def __init__(self, n, world, g):
        self.profile = torch.randn(n, 18, generator=g)
        taste = torch.tanh(self.profile @ world["mix"]) @ world["item"].T
        self.click = torch.multinomial(F.softmax(1.2 * taste, 1), 1, generator=g)[:, 0]

    def __len__(self):
        return len(self.profile)

    def __getitem__(self, row):
        return row, self.profile[row], self.click[row]


class TwoTower(nn.Module):
    def __init__(self, hidden, dim):
        super().__init__()
        self.user = nn.Sequential(nn.Linear(18, hidden), nn.Tanh(), nn.Linear(hidden, dim))
        self.item = nn.Embedding(ITEMS, dim)

    def forward(self, profile):
        return self.user(profile) @ self.item.weight.T


class SoftTargetBank:  # teacher scores for every training row, computed once
    @torch.no_grad()
    def __init__(self, teacher, dataset):
        teacher.eval()
        self.scores = torch.empty(len(dataset), ITEMS)
        for rows, profile, _ in DataLoader(dataset, batch_size=400):
            self.scores[rows] = teacher(profile)

    def lookup(self, rows):
        return F.softmax(self.scores[rows] / TAU, dim=1)


def hit_rate(model, dataset, k=5):
    model.eval()
    with torch.no_grad():
        top = model(dataset.profile).topk(k, 1).indices
    return (top == dataset.click[:, None]).any(1).float().mean().item()


def fit_teacher(model, loader, epochs=8):
    opt = torch.optim.AdamW(model.parameters(), lr=4e-3, weight_decay=0.05)
    for _ in range(epochs):
        model.train()
        for _, profile, click in loader:
            opt.zero_grad()
            F.cross_entropy(model(profile), click).backward()
            opt.step()


def distill(student, bank, loader, epochs=9, beta=0.8):
    opt = torch.optim.AdamW(student.parameters(), lr=8e-3)
    for epoch in range(epochs):
        student.train()
        soft_sum = 0.0
        for rows, profile, click in loader:
            logits = student(profile)
            soft = F.kl_div(F.log_softmax(logits / TAU, 1), bank.lookup(rows), reduction="batchmean") * TAU ** 2
            loss = beta * soft + (1 - beta) * F.cross_entropy(logits, click)
            opt.zero_grad(set_to_none=True)
            loss.backward()
            opt.step()
            soft_sum += soft.item()
        yield epoch, soft_sum / len(loader)


if __name__ == "__main__":
    g = torch.Generator().manual_seed(SEED)
    world = {"mix": torch.randn(18, 12, generator=g), "item": torch.randn(ITEMS, 12, generator=g)}
    train, val = Interactions(USERS, world, g), Interactions(800, world, g)
    loader = DataLoader(train, batch_size=48, shuffle=True)
    teacher = TwoTower(96, 24)
    fit_teacher(teacher, loader)
    print(f"teacher hit@5 {hit_rate(teacher, val):.3f}")
    bank, student = SoftTargetBank(teacher, train), TwoTower(12, 8)
    for epoch, soft in distill(student, bank, loader):
        print(f"epoch {epoch} soft {soft:.4f} hit@5 {hit_rate(student, val):.3f}")
