"""BYOL: model module and training script kept apart, as in a small research repository."""
import argparse
import copy
import torch
import torch.nn as nn
import torch.nn.functional as F
from sklearn.datasets import load_digits


def D(p, z):
    return 2 - 2 * F.cosine_similarity(p, z.detach(), dim=-1).mean()


def mlp(i, h, o):
    return nn.Sequential(nn.Linear(i, h), nn.BatchNorm1d(h), nn.ReLU(), nn.Linear(h, o))


class BYOL(nn.Module):
    def __init__(self, backbone, dim, tau=0.96):
        super().__init__()
        self.online_encoder = nn.Sequential(backbone, mlp(dim, 64, 32))
        self.online_predictor = mlp(32, 64, 32)
        self.target_encoder = copy.deepcopy(self.online_encoder).requires_grad_(False)
        for m in self.target_encoder.modules():
            if isinstance(m, nn.Linear):
                m.reset_parameters()
        self.tau = tau

    @torch.no_grad()
    def update_moving_average(self):
        for o, t in zip(self.online_encoder.parameters(), self.target_encoder.parameters()):
            t.copy_(self.tau * t + (1 - self.tau) * o)

    def forward(self, x1, x2):
        z1o, z2o = self.online_encoder(x1), self.online_encoder(x2)
        p1, p2 = self.online_predictor(z1o), self.online_predictor(z2o)
        with torch.no_grad():
            z1t, z2t = self.target_encoder(x1), self.target_encoder(x2)
        return D(p1, z2t) / 2 + D(p2, z1t) / 2


def augment(x):
    x = torch.roll(x, (int(torch.randint(-1, 2, (1,))), int(torch.randint(-1, 2, (1,)))), (-2, -1))
    return x * (torch.rand_like(x) > 0.15) + 0.05 * torch.randn_like(x)


def knn(encoder, bank, bank_y, x, y):
    encoder.eval()
    with torch.no_grad():
        a, b = (F.normalize(encoder(v), dim=-1) for v in (x, bank))
    encoder.train()
    return (bank_y[(a @ b.T).argmax(1)] == y).float().mean().item()


def main(args):
    torch.manual_seed(50)
    d = load_digits()
    x, y = torch.tensor(d.images, dtype=torch.float32)[:, None] / 16, torch.tensor(d.target)
    backbone = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 16, 3, padding=1),
                             nn.ReLU(), nn.Flatten())
    model = BYOL(backbone, 256)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=args.lr, momentum=0.9, weight_decay=1e-4)
    for epoch in range(args.epochs):
        for idx in torch.randperm(1280).split(64):
            loss = model(augment(x[idx]), augment(x[idx]))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        print(f"epoch {epoch} loss {loss.item():.4f} knn {knn(backbone, x[:1280], y[:1280], x[1280:], y[1280:]):.4f}")
    print("final knn", round(knn(backbone, x[:1280], y[:1280], x[1280:], y[1280:]), 4))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--lr", type=float, default=0.05)
    main(parser.parse_args([]))
