"""Click-through ranking: distil stored teacher scores into a small factorisation model.

A wide ensemble-like teacher scores the whole impression log once; the scores are kept
in a table and looked up by impression while the student is trained on the train split.
"""
import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset, random_split

N_USERS, N_ITEMS, DIM = 150, 80, 6


class ImpressionLog(Dataset):
    def __init__(self, n, seed=0):
        rng = np.random.default_rng(seed)
        u_lat, i_lat = rng.normal(size=(N_USERS, DIM)), rng.normal(size=(N_ITEMS, DIM))
        self.user = rng.integers(0, N_USERS, n)
        self.item = rng.integers(0, N_ITEMS, n)
        affinity = (u_lat[self.user] * i_lat[self.item]).sum(1) - 0.5
        self.click = (rng.random(n) < 1 / (1 + np.exp(-1.5 * affinity))).astype(np.float32)

    def __len__(self):
        return len(self.user)

    def __getitem__(self, i):
        return int(self.user[i]), int(self.item[i]), self.click[i]


class WithIndex(Dataset):
    """Adds the impression's index, so that a stored score can be found for it."""

    def __init__(self, subset: Subset):
        self.subset = subset

    def __len__(self):
        return len(self.subset)

    def __getitem__(self, i):
        return (self.subset.indices[i], *self.subset[i])


class FactorModel(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.user, self.item = nn.Embedding(N_USERS, dim), nn.Embedding(N_ITEMS, dim)
        self.user_bias, self.item_bias = nn.Embedding(N_USERS, 1), nn.Embedding(N_ITEMS, 1)
        for emb in (self.user, self.item):
            nn.init.normal_(emb.weight, std=0.3)
        for emb in (self.user_bias, self.item_bias):
            nn.init.zeros_(emb.weight)

    def forward(self, u, i):
        dot = (self.user(u) * self.item(i)).sum(-1)
        return dot + self.user_bias(u).squeeze(-1) + self.item_bias(i).squeeze(-1)


def auc(score, label):
    order = np.argsort(score)
    rank = np.empty(len(score))
    rank[order] = np.arange(1, len(score) + 1)
    n_pos = label.sum()
    return (rank[label == 1].sum() - n_pos * (n_pos + 1) / 2) / (n_pos * (len(label) - n_pos))


@torch.no_grad()
def test_auc(model, log, subset):
    idx = np.asarray(subset.indices)
    score = model(torch.as_tensor(log.user[idx]), torch.as_tensor(log.item[idx]))
    return auc(score.numpy(), log.click[idx])


def fit_teacher(log, split, steps=200):
    """The teacher sees the train split only."""
    teacher = FactorModel(16)
    opt = torch.optim.AdamW(teacher.parameters(), lr=2e-2, weight_decay=0.3)
    idx = torch.as_tensor(split.indices)
    user, item = torch.as_tensor(log.user), torch.as_tensor(log.item)
    click = torch.as_tensor(log.click)
    for _ in range(steps):
        pick = idx[torch.randint(0, len(idx), (1024,))]
        loss = nn.functional.binary_cross_entropy_with_logits(teacher(user[pick], item[pick]), click[pick])
        opt.zero_grad()
        loss.backward()
        opt.step()
    return teacher.eval()


@torch.no_grad()
def score_log(teacher, log):
    table = torch.empty(len(log))
    for lo in range(0, len(log), 2000):
        hi = min(lo + 2000, len(log))
        table[lo:hi] = teacher(torch.as_tensor(log.user[lo:hi]), torch.as_tensor(log.item[lo:hi]))
    return table


def main():
    torch.manual_seed(0)
    log = ImpressionLog(12000)
    train_split, test_split = random_split(log, [8000, 4000], generator=torch.Generator().manual_seed(1))
    teacher = fit_teacher(log, train_split)
    scores = score_log(teacher, log)
    print(f"stored {len(scores)} teacher scores, teacher AUC {test_auc(teacher, log, test_split):.4f}")

    student = FactorModel(6)
    loader = DataLoader(WithIndex(train_split), batch_size=500, shuffle=True,
                        generator=torch.Generator().manual_seed(2))
    opt = torch.optim.Adam(student.parameters(), lr=2e-2)
    bce = nn.BCEWithLogitsLoss()
    for epoch in range(6):
        hard_sum = soft_sum = 0.0
        for index, user, item, click in loader:
            logit = student(user, item)
            hard, soft = bce(logit, click), bce(logit, torch.sigmoid(scores[index]))
            loss = 0.2 * hard + 0.8 * soft
            opt.zero_grad()
            loss.backward()
            opt.step()
            hard_sum, soft_sum = hard_sum + hard.item(), soft_sum + soft.item()
        print(f"epoch {epoch}: hard {hard_sum / len(loader):.4f} soft {soft_sum / len(loader):.4f} "
              f"test AUC {test_auc(student, log, test_split):.4f}")


if __name__ == "__main__":
    main()
