"""Distillation on digits; configuration object and a training loop in the style of a tutorial."""
import torch
import torch.nn as nn
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, TensorDataset


class SmallModel(nn.Sequential):
    def __init__(self, width):
        super().__init__(nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(2),
                         nn.Conv2d(width, 2 * width, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
                         nn.Linear(8 * width, 10))


class Configs:
    def __init__(self):
        self.kl_div_loss = nn.KLDivLoss(reduction="batchmean", log_target=True)
        self.loss_func = nn.CrossEntropyLoss()
        self.temperature = 5.0
        self.soft_targets_weight = 100.0
        self.label_loss_weight = 0.5
        self.large, self.model = SmallModel(24), SmallModel(6)
        data = load_digits()
        x = torch.tensor(data.images, dtype=torch.float32)[:, None] / 16
        y = torch.tensor(data.target)
        self.train = DataLoader(TensorDataset(x[:1200], y[:1200]), 48, shuffle=True)
        self.valid = (x[1200:], y[1200:])
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=2.5e-3)

    def train_large(self, epochs=2):
        opt = torch.optim.Adam(self.large.parameters(), lr=5e-3)
        for _ in range(epochs):
            for x, y in self.train:
                opt.zero_grad()
                F.cross_entropy(self.large(x), y).backward()
                opt.step()

    def step(self, data, target):
        self.model.train()
        self.large.eval()
        with torch.no_grad():
            large_logits = self.large(data)
        output = self.model(data)
        soft_targets = F.log_softmax(large_logits / self.temperature, dim=-1)
        soft_prob = F.log_softmax(large_logits / self.temperature, dim=-1)
        soft_targets_loss = self.kl_div_loss(soft_prob, soft_targets)
        label_loss = self.loss_func(output, target)
        loss = self.soft_targets_weight * soft_targets_loss / 100 * self.temperature ** 2 + self.label_loss_weight * label_loss
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return soft_targets_loss.item(), label_loss.item()


def main():
    torch.manual_seed(19)
    conf = Configs()
    conf.train_large()
    for epoch in range(3):
        for data, target in conf.train:
            soft, hard = conf.step(data, target)
        print(f"epoch {epoch} soft {soft:.5f} label {hard:.4f}")
    conf.model.eval()
    x, y = conf.valid
    with torch.no_grad():
        print("valid accuracy %.4f" % (conf.model(x).argmax(-1) == y).float().mean().item())


main()
