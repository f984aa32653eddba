"""Distil a dropout/BN conv net into a slim one (texture patches, 8 classes)."""
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(3)
torch.set_num_threads(1)
CLASSES, SIDE = 8, 12


def make_split(n, protos, gen):
    y = torch.randint(0, CLASSES, (n,), generator=gen)
    x = protos[y] + 1.7 * torch.randn(n, 1, SIDE, SIDE, generator=gen)
    shift = torch.randint(-1, 2, (n,), generator=gen)
    x = torch.stack([torch.roll(img, int(s), dims=-1) for img, s in zip(x, shift)])
    return TensorDataset(x, y)


def convnet(width, p_drop):
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(width, 2 * width, 3, padding=1), nn.BatchNorm2d(2 * width), nn.ReLU(),
        nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Dropout(p_drop),
        nn.Linear(18 * width, CLASSES))


class KDModelWrapper(nn.Module):
    """Student and teacher travel together so that one call yields both outputs."""

    def __init__(self, student, teacher, temperature=3.0, hardness=0.3):
        super().__init__()
        self.student, self.teacher = student, teacher
        self.T, self.hardness = temperature, hardness
        self.teacher.eval()
        for p in self.teacher.parameters():
            p.requires_grad_(False)

    def train(self, mode=True):
        super().train(mode)
        self.teacher.eval()
        return self

    def forward(self, x, y):
        s = self.student(x)
        with torch.no_grad():
            t = self.teacher(x)
        soft = F.kl_div(F.log_softmax(s / self.T, 1), F.log_softmax(t / self.T, 1),
                        reduction="batchmean", log_target=True) * self.T ** 2
        return self.hardness * F.cross_entropy(s, y) + (1 - self.hardness) * soft, soft


@torch.no_grad()
def accuracy(net, loader):
    net.eval()
    return sum((net(x).argmax(1) == y).sum().item() for x, y in loader) / len(loader.dataset)


def main():
    gen = torch.Generator().manual_seed(11)
    protos = F.interpolate(torch.randn(CLASSES, 1, 4, 4, generator=gen), size=SIDE, mode="bilinear")
    train = DataLoader(make_split(1280, protos, gen), batch_size=32, shuffle=True)
    val = DataLoader(make_split(600, protos, gen), batch_size=200)

    teacher = convnet(24, 0.5)
    opt = torch.optim.Adam(teacher.parameters(), lr=2e-3)
    for epoch in range(5):
        teacher.train()
        for x, y in train:
            opt.zero_grad()
            F.cross_entropy(teacher(x), y).backward()
            opt.step()
    print(f"teacher val acc {accuracy(teacher, val):.3f}")

    kd = KDModelWrapper(convnet(5, 0.0), teacher)
    opt = torch.optim.SGD(kd.student.parameters(), lr=0.02, momentum=0.9)
    for epoch in range(6):
        kd.train()
        total = 0.0
        for x, y in train:
            loss, soft = kd(x, y)
            opt.zero_grad()
            loss.backward()
            opt.step()
            total += soft.item()
        print(f"epoch {epoch} soft {total / len(train):.4f} val acc {accuracy(kd.student, val):.3f}")


if __name__ == "__main__":
    main()
