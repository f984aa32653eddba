"""A distillation with a hint, a clip and a saved student. Each slip in slips.toml changes a line of it."""

import copy

import torch
import torch.nn as nn
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, TensorDataset, random_split

torch.manual_seed(0)
T, alpha = 4.0, 0.7
images, labels = load_digits(return_X_y=True)
data = TensorDataset(torch.tensor(images / 16, dtype=torch.float32).view(-1, 1, 8, 8), torch.tensor(labels))
train, val = random_split(data, [1500, 297])
loader = DataLoader(train, batch_size=64, shuffle=True, drop_last=True)


class Net(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(width, 2 * width, 3, padding=1), nn.BatchNorm2d(2 * width), nn.ReLU())
        self.head = nn.Linear(2 * width, 10)

    def forward(self, x):
        hint = self.second(self.first(x))
        return self.head(hint.mean((2, 3))), hint


teacher = Net(32)
optimizer = torch.optim.Adam(teacher.parameters(), lr=3e-3)
for _ in range(4):
    for x, y in loader:
        optimizer.zero_grad()
        F.cross_entropy(teacher(x)[0], y).backward()
        optimizer.step()
teacher.eval().requires_grad_(False)

student, projector = Net(8), nn.Conv2d(16, 64, 1)
trained = [*student.parameters(), *projector.parameters()]
optimizer = torch.optim.SGD(trained, lr=0.05, momentum=0.9)
for x, y in [batch for _ in range(2) for batch in loader]:
    with torch.no_grad():
        answer, hint = teacher(x)
    logits, mine = student(x)
    soft = F.kl_div(F.log_softmax(logits / T, 1), F.softmax(answer / T, 1), reduction="batchmean") * T * T
    loss = (1 - alpha) * F.cross_entropy(logits, y) + alpha * soft + F.mse_loss(projector(mine), hint)
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(trained, 0.5)
    optimizer.step()

best = copy.deepcopy(student)
best.eval()
with torch.no_grad():
    hits = sum((best(x)[0].argmax(1) == y).sum().item() for x, y in DataLoader(val, 297))
print(f"accuracy {100 * hits / len(val):.1f}")
torch.save(best.state_dict(), "student.pt")
