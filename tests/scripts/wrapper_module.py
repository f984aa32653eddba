"""A Distiller module owns the student and the frozen teacher and returns the training loss from its forward."""

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

N_CLASSES = 8
torch.manual_seed(7)


def make_split(centres, n):
    labels = torch.arange(n) % N_CLASSES
    return TensorDataset(centres[labels] + 2.0 * torch.randn(n, 3, 16, 16), labels)


class Net(nn.Module):
    def __init__(self, channels, p_drop=0.0):
        super().__init__()
        layers, previous = [], 3
        for c in channels:
            layers += [nn.Conv2d(previous, c, 3, stride=2, padding=1), nn.BatchNorm2d(c), nn.ReLU(inplace=True)]
            previous = c
        self.body = nn.Sequential(*layers)
        self.drop = nn.Dropout(p_drop)
        self.classifier = nn.Linear(previous, N_CLASSES)

    def forward(self, x):
        return self.classifier(self.drop(self.body(x).mean((2, 3))))


class Distiller(nn.Module):
    def __init__(self, student, teacher, temperature=2.0, ratio=0.5):
        super().__init__()
        self.student = student
        self.teacher = teacher
        self.temperature = temperature
        self.ratio = ratio
        for p in self.teacher.parameters():
            p.requires_grad_(False)

    def train(self, mode=True):
        super().train(mode)
        self.teacher.eval()
        return self

    def forward(self, images, labels=None):
        out = self.student(images)
        if labels is None:
            return out
        target = self.teacher(images)
        t = self.temperature
        soft = F.kl_div(F.log_softmax(out / t, 1), F.softmax(target / t, 1), reduction="batchmean") * (t * t)
        hard = F.cross_entropy(out, labels)
        return self.ratio * soft + (1.0 - self.ratio) * hard


def pretrain(net, loader, epochs):
    opt = torch.optim.AdamW(net.parameters(), lr=5e-3)
    net.train()
    for _ in range(epochs):
        for images, labels in loader:
            opt.zero_grad()
            F.cross_entropy(net(images), labels).backward()
            opt.step()
    return net


def score(model, loader):
    model.eval()
    with torch.no_grad():
        return sum((model(a).argmax(1) == b).sum().item() for a, b in loader) / len(loader.dataset)


def main():
    centres = torch.randn(N_CLASSES, 3, 4, 4).repeat_interleave(4, 2).repeat_interleave(4, 3)
    train = DataLoader(make_split(centres, 512), batch_size=64, shuffle=True)
    test = DataLoader(make_split(centres, 192), batch_size=64)

    teacher = pretrain(Net((24, 48), p_drop=0.2), train, epochs=4)
    print("teacher", round(score(teacher, test), 3))

    distiller = Distiller(Net((12, 24)), teacher)
    params = [p for p in distiller.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(params, lr=5e-3, weight_decay=1e-2)
    for epoch in range(5):
        distiller.train()
        for images, labels in train:
            loss = distiller(images, labels)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(params, 2.0)
            optimizer.step()
        print(f"epoch {epoch}: loss={loss.item():.3f}")
    print("student accuracy", round(score(distiller, test), 3))


if __name__ == "__main__":
    main()
