"""Train one classifier on labels alone."""

import torch
import torch.nn as nn
import torch.nn.functional as F

torch.manual_seed(3)
NUM_CLASSES, LENGTH, CHANNELS = 6, 32, 4


class SignalNet(nn.Module):
    """1-d convolutions over a short multichannel signal."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv1d(CHANNELS, 16, 5, padding=2)
        self.bn1 = nn.BatchNorm1d(16)
        self.conv2 = nn.Conv1d(16, 24, 5, padding=2)
        self.bn2 = nn.BatchNorm1d(24)
        self.dropout = nn.Dropout(0.2)
        self.fc = nn.Linear(24, NUM_CLASSES)

    def forward(self, x):
        x = F.max_pool1d(F.relu(self.bn1(self.conv1(x))), 2)
        x = F.max_pool1d(F.relu(self.bn2(self.conv2(x))), 2)
        return self.fc(self.dropout(x.mean(-1)))


frequencies = torch.rand(NUM_CLASSES, CHANNELS, 1) * 3


def signals(n):
    y = torch.randint(NUM_CLASSES, (n,))
    t = torch.arange(LENGTH).view(1, 1, -1)
    phase = 6.28 * torch.rand(n, CHANNELS, 1)
    return torch.sin(frequencies[y] * t + phase) + 0.3 * torch.randn(n, CHANNELS, LENGTH), y


def accuracy(net, x, y):
    net.eval()
    with torch.no_grad():
        return (net(x).argmax(1) == y).float().mean().item()


x_train, y_train = signals(1024)
x_test, y_test = signals(256)

net = SignalNet()
optimizer = torch.optim.AdamW(net.parameters(), lr=5e-3)
scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=6)
criterion = nn.CrossEntropyLoss(label_smoothing=0.05)
for epoch in range(6):
    net.train()
    for batch in torch.randperm(len(x_train)).split(64):
        loss = criterion(net(x_train[batch]), y_train[batch])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
    scheduler.step()
    print(f"epoch {epoch} loss {loss.item():.3f} accuracy {accuracy(net, x_test, y_test):.3f}")
print(f"test accuracy {accuracy(net, x_test, y_test):.3f}")
