"""Progressive self-distillation: last epoch's snapshot softens this epoch's targets."""
import copy
from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(33)


@dataclass
class Settings:
    epochs: int = 8
    batch: int = 40
    lr: float = 0.05
    alpha_last: float = 0.8
    classes: int = 5
    label_noise: float = 0.25


class Callback:
    def on_epoch_start(self, trainer): ...

    def on_epoch_end(self, trainer): ...


class SnapshotKeeper(Callback):
    def on_epoch_end(self, trainer):
        trainer.past = copy.deepcopy(trainer.net).eval().requires_grad_(False)


class AlphaSchedule(Callback):
    """The trust in the past grows linearly with the epochs."""

    def on_epoch_start(self, trainer):
        s = trainer.settings
        trainer.alpha = s.alpha_last * ((trainer.epoch + 1) / s.epochs)


class Validation(Callback):
    def __init__(self, x, y):
        self.x, self.y = x, y

    @torch.no_grad()
    def on_epoch_end(self, trainer):
        trainer.net.eval()
        logits = trainer.net(self.x)
        acc = (logits.argmax(1) == self.y).float().mean().item()
        nll = F.cross_entropy(logits, self.y).item()
        print(f"epoch {trainer.epoch} loss {trainer.mean_loss:.3f} val acc {acc:.3f} nll {nll:.3f}")


class SelfKdTrainer:
    def __init__(self, net, settings, callbacks):
        self.net, self.settings, self.callbacks = net, settings, callbacks
        self.past, self.alpha, self.epoch, self.mean_loss = None, 0.0, 0, 0.0
        self.opt = torch.optim.SGD(net.parameters(), lr=settings.lr, momentum=0.9, weight_decay=5e-4)
        self.sched = torch.optim.lr_scheduler.CosineAnnealingLR(self.opt, settings.epochs)

    def emit(self, event):
        for c in self.callbacks:
            getattr(c, event)(self)

    def targets(self, x, y):
        hard = F.one_hot(y, self.settings.classes).float()
        if self.past is None:
            return hard
        with torch.no_grad():
            soft = self.past(x).softmax(1)
        return (1 - self.alpha) * hard + self.alpha * soft

    def fit(self, loader):
        for self.epoch in range(self.settings.epochs):
            self.emit("on_epoch_start")
            self.net.train()
            total = 0.0
            for x, y in loader:
                loss = F.cross_entropy(self.net(x), self.targets(x, y))
                self.opt.zero_grad()
                loss.backward()
                self.opt.step()
                total += loss.item()
            self.sched.step()
            self.mean_loss = total / len(loader)
            self.emit("on_epoch_end")


def spirals(n, s, seed, noisy):
    g = torch.Generator().manual_seed(seed)
    y = torch.randint(0, s.classes, (n,), generator=g)
    r = torch.rand(n, generator=g) * 2 + 0.3
    phi = 2.0 * r + y * 2 * torch.pi / s.classes + 0.15 * torch.randn(n, generator=g)
    x = torch.stack([r * phi.cos(), r * phi.sin()], 1)
    if noisy:
        flip = torch.rand(n, generator=g) < s.label_noise
        y = torch.where(flip, torch.randint(0, s.classes, (n,), generator=g), y)
    return x, y


settings = Settings()
train = DataLoader(TensorDataset(*spirals(1200, settings, 1, True)), batch_size=settings.batch, shuffle=True)
net = nn.Sequential(nn.Linear(2, 128), nn.BatchNorm1d(128), nn.ReLU(), nn.Linear(128, 128), nn.BatchNorm1d(128),
                    nn.ReLU(), nn.Linear(128, settings.classes))
SelfKdTrainer(net, settings, [AlphaSchedule(), Validation(*spirals(600, settings, 2, False)), SnapshotKeeper()]).fit(train)
