"""Distillation with random crops and flips on small synthetic shapes."""
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.utils.data import DataLoader, Dataset

torch.manual_seed(21)
N, SIZE = 480, 12


def draw_shapes():
    y = torch.randint(0, 4, (N,))
    img = 0.2 * torch.randn(N, 1, SIZE, SIZE)
    for i in range(N):
        r, c = torch.randint(1, 6, (2,)).tolist()
        if y[i] == 0: img[i, 0, r:r + 5, c] += 1
        if y[i] == 1: img[i, 0, r, c:c + 5] += 1
        if y[i] == 2: img[i, 0, r:r + 5, c:c + 5] += torch.eye(5)
        if y[i] == 3: img[i, 0, r:r + 3, c:c + 3] += 1
    return img, y


class Augmented(Dataset):
    def __init__(self, x, y):
        self.x, self.y = x, y

    def __len__(self):
        return len(self.y)

    def __getitem__(self, i):
        img = F.pad(self.x[i], (2, 2, 2, 2))
        r, c = torch.randint(0, 5, (2,)).tolist()
        img = img[:, r:r + SIZE, c:c + SIZE]
        if torch.rand(()) < 0.5:
            img = img.flip(-1)
        return i, img, self.y[i]


def convnet(w):
    return nn.Sequential(nn.Conv2d(1, w, 3), nn.ReLU(), nn.Conv2d(w, w, 3, stride=2), nn.ReLU(), nn.Flatten(),
                         nn.Linear(w * 16, 4))


x, y = draw_shapes()
loader = DataLoader(Augmented(x, y), batch_size=32, shuffle=True)
teacher, student = convnet(24), convnet(6)
opt = torch.optim.Adam(teacher.parameters(), lr=3e-3)
for _ in range(8):
    for _, img, lab in loader:
        opt.zero_grad(); F.cross_entropy(teacher(img), lab).backward(); opt.step()
teacher.eval()

cached = torch.zeros(N, 4)
with torch.no_grad():
    for idx, img, _ in loader:
        cached[idx] = teacher(img)

optimizer = torch.optim.SGD(student.parameters(), lr=0.05, momentum=0.9)
T = 3.0
for epoch in range(6):
    for idx, img, lab in loader:
        soft = cached[idx]
        out = student(img)
        kd = F.kl_div(F.log_softmax(out / T, 1), F.softmax(soft / T, 1), reduction="batchmean") * T * T
        loss = 0.9 * kd + 0.1 * F.cross_entropy(out, lab)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"epoch {epoch} kd {kd.item():.4f}")
with torch.no_grad():
    print(f"train accuracy {(student(x).argmax(1) == y).float().mean():.4f}")
