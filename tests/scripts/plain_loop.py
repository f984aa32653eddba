"""Distil a small CNN from a wider one on synthetic 16x16 images: one plain loop, soft targets plus hard labels."""

import torch
import torch.nn as nn
import torch.nn.functional as F

T = 4.0
ALPHA = 0.7
EPOCHS = 4
BATCH = 64
CLASSES = 6

torch.manual_seed(0)
prototypes = F.interpolate(torch.randn(CLASSES, 3, 4, 4), size=16, mode="nearest")


def sample(n):
    y = torch.randint(0, CLASSES, (n,))
    x = prototypes[y] + 2.5 * torch.randn(n, 3, 16, 16)
    return x, y


def cnn(width):
    return nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(width, 2 * width, 3, padding=1, bias=False),
        nn.BatchNorm2d(2 * width),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(2 * width * 16, CLASSES),
    )


@torch.no_grad()
def accuracy(net, x, y):
    net.eval()
    return (net(x).argmax(1) == y).float().mean().item()


train_x, train_y = sample(512)
test_x, test_y = sample(200)

# 1. teacher
teacher = cnn(12)
teacher_opt = torch.optim.Adam(teacher.parameters(), lr=3e-3)
for epoch in range(3):
    teacher.train()
    for idx in torch.randperm(len(train_x)).split(BATCH):
        loss = F.cross_entropy(teacher(train_x[idx]), train_y[idx])
        teacher_opt.zero_grad()
        loss.backward()
        teacher_opt.step()
print(f"teacher accuracy {accuracy(teacher, test_x, test_y):.3f}")

# 2. student
student = cnn(6)
optimizer = torch.optim.SGD(student.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=EPOCHS)
teacher.eval()
for epoch in range(EPOCHS):
    student.train()
    running = 0.0
    for idx in torch.randperm(len(train_x)).split(BATCH):
        x, y = train_x[idx], train_y[idx]
        x = x.flip(3) if torch.rand(()) < 0.5 else x
        with torch.no_grad():
            teacher_logits = teacher(x)
        student_logits = student(x)
        kd = F.kl_div(
            F.log_softmax(student_logits / T, dim=1),
            F.softmax(teacher_logits / T, dim=1),
            reduction="batchmean",
        )
        ce = F.cross_entropy(student_logits, y)
        loss = ALPHA * kd * T * T + (1 - ALPHA) * ce
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 5.0)
        optimizer.step()
        running += loss.item()
    scheduler.step()
    print(f"epoch {epoch} loss {running / 8:.3f} accuracy {accuracy(student, test_x, test_y):.3f}")

print(f"final accuracy {accuracy(student, test_x, test_y):.3f}")
