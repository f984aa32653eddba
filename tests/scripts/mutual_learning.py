"""Deep mutual learning: two peers learn from the labels and from each other's current answer."""

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(66)
CLASSES, EPOCHS, TEMPERATURE = 5, 5, 2.0


class WidePeer(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3, padding=1)
        self.bn = nn.BatchNorm2d(16)
        self.fc = nn.Linear(16 * 16, CLASSES)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.bn(self.conv(x))), 4)
        return self.fc(x.flatten(1))


class DeepPeer(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 12, 3, 2, 1),
            nn.BatchNorm2d(12),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(12 * 16, CLASSES),
        )

    def forward(self, x):
        return self.net(x)


def mimicry(own, other):
    """KL(other || own), the other peer taken as a constant."""
    target = F.softmax(other.detach() / TEMPERATURE, dim=1)
    return F.kl_div(F.log_softmax(own / TEMPERATURE, dim=1), target, reduction="batchmean") * TEMPERATURE**2


def evaluate(peer, loader):
    peer.eval()
    correct = count = 0
    with torch.no_grad():
        for x, y in loader:
            correct += int((peer(x).argmax(1) == y).sum())
            count += len(y)
    return correct / count


shapes = torch.randn(CLASSES, 3, 4, 4).repeat_interleave(4, 2).repeat_interleave(4, 3)
labels = torch.randint(CLASSES, (800,))
pixels = shapes[labels] + 2.0 * torch.randn(800, 3, 16, 16)
everything = TensorDataset(pixels, labels)
train_set, test_set = torch.utils.data.random_split(everything, [560, 240])
train_loader = DataLoader(train_set, batch_size=56, shuffle=True)
test_loader = DataLoader(test_set, batch_size=120)

peer_a, peer_b = WidePeer(), DeepPeer()
opt_a = torch.optim.SGD(peer_a.parameters(), lr=0.02, momentum=0.9)
opt_b = torch.optim.SGD(peer_b.parameters(), lr=0.02, momentum=0.9)

for epoch in range(EPOCHS):
    peer_a.train()
    peer_b.train()
    for x, y in train_loader:
        out_a, out_b = peer_a(x), peer_b(x)
        loss_a = F.cross_entropy(out_a, y) + mimicry(out_a, out_b)
        loss_b = F.cross_entropy(out_b, y) + mimicry(out_b, out_a)

        opt_a.zero_grad()
        loss_a.backward()
        opt_a.step()

        opt_b.zero_grad()
        loss_b.backward()
        opt_b.step()
    print(f"epoch {epoch}: a {loss_a.item():.3f} b {loss_b.item():.3f}")

print(f"accuracy: wide {evaluate(peer_a, test_loader):.3f} deep {evaluate(peer_b, test_loader):.3f}")
