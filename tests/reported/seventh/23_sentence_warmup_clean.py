"""Sentence-embedding distillation with linear warm-up (epochs given in the config, steps in the schedule)."""
import argparse
import torch
from torch import nn
import torch.nn.functional as F
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, TensorDataset
def parse():
    p = argparse.ArgumentParser()
    p.add_argument("--epochs", type=int, default=6)
    p.add_argument("--warmup-epochs", type=int, default=1)
    p.add_argument("--batch-size", type=int, default=256)
    p.add_argument("--lr", type=float, default=0.8)
    return p.parse_args()


class SentenceEncoder(nn.Module):
    def __init__(self, vocab, width, out, hidden):
        super().__init__()
        self.bag = nn.EmbeddingBag(vocab, width, mode="mean")
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, out))

    def forward(self, tokens):
        return F.normalize(self.mlp(self.bag(tokens)), dim=-1)


def sentences(n, topics, g):
    k = torch.randint(0, len(topics), (n,), generator=g)
    own = topics[k].gather(1, torch.randint(0, topics.shape[1], (n, 8), generator=g))
    return torch.cat([own, torch.randint(0, 300, (n, 4), generator=g)], 1), k


def supervised_contrastive(emb, k, tau=0.1):
    sim = (emb @ emb.T / tau).fill_diagonal_(-1e9)
    same = (k[:, None] == k[None]).float().fill_diagonal_(0)
    return -((sim.log_softmax(1) * same).sum(1) / same.sum(1).clamp_min(1)).mean()


def embed_loss(s, t):
    return (1 - (s * t).sum(-1)).mean() + F.mse_loss(s @ s.T, t @ t.T)


def linear_schedule(optimizer, warmup_steps, total_steps):
    def factor(step):
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        return max(0.0, (total_steps - step) / max(1, total_steps - warmup_steps))
    return LambdaLR(optimizer, factor)


def main():
    args = parse()
    torch.manual_seed(23)
    torch.set_num_threads(1)
    g = torch.Generator().manual_seed(23)
    topics = torch.randint(0, 300, (20, 15), generator=g)
    train_x, train_k = sentences(3840, topics, g)
    val_x, val_k = sentences(800, topics, g)

    teacher = SentenceEncoder(300, 64, 32, 128)
    opt = torch.optim.Adam(teacher.parameters(), lr=3e-3)
    for step in range(400):
        i = torch.randint(0, len(train_x), (128,), generator=g)
        opt.zero_grad()
        supervised_contrastive(teacher(train_x[i]), train_k[i]).backward()
        opt.step()
    teacher.eval().requires_grad_(False)

    student = SentenceEncoder(300, 32, 32, 64)
    loader = DataLoader(TensorDataset(train_x), batch_size=args.batch_size, shuffle=True)
    steps_per_epoch = len(loader)
    optimizer = torch.optim.SGD(student.parameters(), lr=args.lr, momentum=0.9)
    scheduler = linear_schedule(optimizer, args.warmup_epochs * steps_per_epoch, args.epochs * steps_per_epoch)
    for epoch in range(args.epochs):
        student.train()
        for (tokens,) in loader:
            with torch.no_grad():
                ref = teacher(tokens)
            loss = embed_loss(student(tokens), ref)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
        student.eval()
        with torch.no_grad():
            cos = (student(val_x) * teacher(val_x)).sum(-1).mean().item()
        print(f"epoch {epoch} loss {loss.item():.4f} lr {scheduler.get_last_lr()[0]:.5f} val cosine {cos:.4f}")


main()
