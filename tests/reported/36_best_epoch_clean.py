import torch
import torch.nn as nn
import torch.nn.functional as F
from copy import deepcopy

torch.manual_seed(36)
DIM, CLASSES = 16, 8
PROTO = torch.randn(CLASSES, DIM)


def make_split(n):
    y = torch.randint(0, CLASSES, (n,))
    return PROTO[y] * (0.6 + torch.rand(n, 1)) + 0.9 * torch.randn(n, DIM), y


class Embedder(nn.Module):
    def __init__(self, hidden):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(DIM, hidden), nn.ReLU(), nn.Dropout(0.1), nn.Linear(hidden, CLASSES))

    def forward(self, x):
        return self.net(x)


@torch.no_grad()
def evaluate(model, split):
    model.eval()
    acc = (model(split[0]).argmax(1) == split[1]).float().mean().item()
    model.train()
    return acc


def training_epoch(model, teacher, split, optimizer, T=2.0):
    for idx in torch.randperm(len(split[1])).split(32):
        x = split[0][idx]
        out = model(x)
        with torch.no_grad():
            soft = F.softmax(teacher(x) / T, 1)
        loss = F.kl_div(F.log_softmax(out / T, 1), soft, reduction="batchmean") * T * T
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return loss.item()


train, val, test = make_split(512), make_split(300), make_split(1000)
teacher = Embedder(96)
opt = torch.optim.Adam(teacher.parameters(), lr=3e-3)
for _ in range(12):
    for idx in torch.randperm(512).split(32):
        opt.zero_grad(); F.cross_entropy(teacher(train[0][idx]), train[1][idx]).backward(); opt.step()
teacher.eval().requires_grad_(False)

student = Embedder(10)
optimizer = torch.optim.Adam(student.parameters(), lr=6e-2)
best_state, best_validation_accuracy = student.state_dict(), 0.0
for epoch in range(12):
    loss = training_epoch(student, teacher, train, optimizer)
    validation_accuracy = evaluate(student, val)
    if validation_accuracy > best_validation_accuracy:
        best_validation_accuracy = validation_accuracy
        best_state = deepcopy(student.state_dict())
        print("Ding ding ding! We found a new best model!")
    print(f"epoch {epoch} loss {loss:.4f} val {validation_accuracy:.4f}")
student.load_state_dict(best_state)
print(f"validation {evaluate(student, val):.4f} test {evaluate(student, test):.4f}")
