"""Distilling a forecaster with an sklearn-like estimator that keeps the best validation weights."""
from copy import deepcopy
import math
import torch
import torch.nn as nn
import torch.nn.functional as F


def series(n, g, noise):
    p = torch.rand(n, 3, generator=g)
    t = torch.arange(40)[None].float()
    clean = (1 + p[:, :1]) * torch.sin(2 * math.pi * t / (8 + 8 * p[:, 1:2]) + 6 * p[:, 2:])
    noisy = clean + noise * torch.randn(n, 40, generator=g)
    return {"X": noisy[:, :32], "y": noisy[:, 32:], "clean": clean[:, 32:]}


def mlp(width):
    return nn.Sequential(nn.Linear(32, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 8))


class BaseForecaster:
    def __init__(self, width, epochs, batch_size=32, lr=2e-3, seed=0):
        torch.manual_seed(seed)
        self.model, self.epochs, self.batch_size = mlp(width), epochs, batch_size
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=lr)
        self.g = torch.Generator().manual_seed(seed)
        self.best_model_dict, self.best_loss, self.best_epoch = None, float("inf"), -1

    def loss(self, x, y):
        return F.mse_loss(self.model(x), y)

    def _train_model(self, train, val):
        for epoch in range(1, self.epochs + 1):
            self.model.train()
            total = 0.0
            for i in torch.randperm(len(train["X"]), generator=self.g).split(self.batch_size):
                self.optimizer.zero_grad()
                loss = self.loss(train["X"][i], train["y"][i])
                loss.backward()
                self.optimizer.step()
                total += loss.item() * len(i)
            val_loss = self.mse(val, "y")
            if val_loss < self.best_loss:
                self.best_loss, self.best_epoch = val_loss, epoch
                self.best_model_dict = self.model.state_dict()
            if epoch % max(1, self.epochs // 5) == 0:
                print(f"  epoch {epoch} train {total / len(train['X']):.4f} val {val_loss:.4f}")

    def fit(self, train, val):
        self._train_model(train, val)
        self.model.load_state_dict(self.best_model_dict)
        self.model.eval()
        print(f"  restored epoch {self.best_epoch}: best val {self.best_loss:.4f}, val now {self.mse(val, 'y'):.4f}")
        return self

    @torch.no_grad()
    def mse(self, data, key):
        self.model.eval()
        return F.mse_loss(self.model(data["X"]), data[key]).item()


class DistilledForecaster(BaseForecaster):
    """mixes observed targets with the forecasts of a fitted teacher"""

    def __init__(self, teacher, weight=0.3, **kw):
        super().__init__(**kw)
        self.teacher = teacher.model.eval().requires_grad_(False)
        self.weight = weight

    def loss(self, x, y):
        with torch.no_grad():
            soft = self.teacher(x)
        pred = self.model(x)
        return self.weight * F.mse_loss(pred, soft) + (1 - self.weight) * F.mse_loss(pred, y)


if __name__ == "__main__":
    torch.set_num_threads(1)
    g = torch.Generator().manual_seed(28)
    big, small, val, test = (series(n, g, 0.7) for n in (3000, 220, 400, 1000))
    print("teacher")
    teacher = BaseForecaster(width=96, epochs=6, seed=1).fit(big, val)
    print("student")
    student = DistilledForecaster(teacher, width=48, epochs=200, lr=4e-3, seed=2).fit(small, val)
    print(f"test mse to clean signal: teacher {teacher.mse(test, 'clean'):.4f} student {student.mse(test, 'clean'):.4f}")
