"""Offline distillation: the teacher answers the whole training set once, the student reads the answers by sample id."""

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.utils.data import DataLoader, Dataset

torch.manual_seed(5)


class IndexedImages(Dataset):
    def __init__(self, n, prototypes):
        self.labels = torch.randint(len(prototypes), (n,))
        self.images = prototypes[self.labels] + 2 * torch.randn(n, *prototypes.shape[1:])

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return index, self.images[index], self.labels[index]


def make_teacher(k):
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, stride=2, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Flatten(),
        nn.Dropout(0.3),
        nn.Linear(32 * 16, k),
    )


def make_student(k):
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(8 * 16, k),
    )


def train_teacher(net, loader, epochs=3):
    opt = torch.optim.Adam(net.parameters(), 2e-3)
    net.train()
    for _ in range(epochs):
        for _, x, y in loader:
            opt.zero_grad()
            F.cross_entropy(net(x), y).backward()
            opt.step()


@torch.no_grad()
def build_cache(teacher, dataset, num_classes, batch=64):
    teacher.eval()
    cache = torch.zeros(len(dataset), num_classes)
    for ids, x, _ in DataLoader(dataset, batch_size=batch, shuffle=False):
        cache[ids] = teacher(x)
    return cache


@torch.no_grad()
def evaluate(net, dataset):
    net.eval()
    return (net(dataset.images).argmax(1) == dataset.labels).float().mean().item()


def train_student(student, loader, cache, epochs, tau=4.0, alpha=0.6):
    opt = torch.optim.SGD(student.parameters(), lr=0.05, momentum=0.9)
    for epoch in range(epochs):
        student.train()
        for step, (ids, x, y) in enumerate(loader):
            stored = cache[ids]
            logits = student(x)
            log_q = F.log_softmax(logits / tau, dim=1)
            p = F.softmax(stored / tau, dim=1)
            distill = F.kl_div(log_q, p, reduction="batchmean") * tau * tau
            loss = alpha * distill + (1 - alpha) * F.cross_entropy(logits, y)
            opt.zero_grad()
            loss.backward()
            opt.step()
        print(f"epoch {epoch}: {step + 1} steps, loss {loss.item():.3f}")


def main():
    num_classes = 7
    prototypes = torch.randn(num_classes, 3, 4, 4).repeat_interleave(4, 2).repeat_interleave(4, 3)
    train, test = IndexedImages(640, prototypes), IndexedImages(300, prototypes)
    loader = DataLoader(train, batch_size=64, shuffle=True)
    teacher = make_teacher(num_classes)
    train_teacher(teacher, loader)
    print("teacher accuracy", evaluate(teacher, test))
    cache = build_cache(teacher, train, num_classes)
    student = make_student(num_classes)
    train_student(student, loader, cache, epochs=4)
    print("student accuracy", evaluate(student, test))


if __name__ == "__main__":
    main()
