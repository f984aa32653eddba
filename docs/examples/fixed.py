"""The script train.py beside this one, with its two mistakes fixed.

kdbench mutate docs/examples/fixed.py
"""

import torch
import torch.nn as nn
import torch.nn.functional as F
from sklearn.datasets import load_digits

torch.manual_seed(0)
T, alpha = 4.0, 0.7

images, labels = load_digits(return_X_y=True)
images = torch.tensor(images, dtype=torch.float32).view(-1, 1, 8, 8) / 16
data = torch.utils.data.TensorDataset(images, torch.tensor(labels))
train, test = torch.utils.data.random_split(data, [1500, 297])
loader = torch.utils.data.DataLoader(train, batch_size=64, shuffle=True, drop_last=True)


class Net(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, padding=1),
            nn.BatchNorm2d(2 * width),
            nn.ReLU(),
        )
        self.head = nn.Linear(2 * width, 10)

    def forward(self, x):
        features = self.body(x)
        return self.head(features.mean((2, 3))), features


def accuracy(net):
    net.eval()
    with torch.no_grad():
        hits = sum((net(x)[0].argmax(1) == y).sum().item() for x, y in torch.utils.data.DataLoader(test, 297))
    return 100 * hits / len(test)


def train_teacher():
    teacher = Net(32)
    optimizer = torch.optim.Adam(teacher.parameters(), lr=3e-3)
    for _ in range(4):
        teacher.train()
        for x, y in loader:
            optimizer.zero_grad()
            F.cross_entropy(teacher(x)[0], y).backward()
            optimizer.step()
    return teacher.eval().requires_grad_(False)


def distil(teacher):
    student = Net(8)
    projector = nn.Conv2d(16, 64, 1)
    parameters = [*student.parameters(), *projector.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=0.05, momentum=0.9)
    for _ in range(5):
        student.train()
        for x, y in loader:
            with torch.no_grad():
                teacher_logits, teacher_features = teacher(x)
            logits, features = student(x)
            soft = F.kl_div(F.log_softmax(logits / T, 1), F.softmax(teacher_logits / T, 1), reduction="batchmean")
            hint = F.mse_loss(projector(features), teacher_features)
            loss = (1 - alpha) * F.cross_entropy(logits, y) + alpha * soft * T * T + hint
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
    return student


if __name__ == "__main__":
    teacher = train_teacher()
    print(f"teacher {accuracy(teacher):.1f} %")
    print(f"student {accuracy(distil(teacher)):.1f} %")
