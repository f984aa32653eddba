"""The student runs through torch.compile, the teacher stays in eager mode."""

import torch
import torch.nn as nn
import torch.nn.functional as F

torch.manual_seed(8)
N_CLASSES, DIM, BATCH, STEPS, TAU = 8, 32, 64, 50, 2.0


class Gated(nn.Module):
    def __init__(self, hidden):
        super().__init__()
        self.value = nn.Linear(DIM, hidden)
        self.gate = nn.Linear(DIM, hidden)
        self.dropout = nn.Dropout(0.1)
        self.out = nn.Linear(hidden, N_CLASSES)

    def forward(self, x):
        return self.out(self.dropout(self.value(x) * torch.sigmoid(self.gate(x))))


def centre_samples(n, centres):
    y = torch.randint(0, N_CLASSES, (n,))
    return centres[y] + 1.5 * torch.randn(n, DIM), y


def accuracy(net, x, y):
    net.eval()
    with torch.no_grad():
        return (net(x).argmax(1) == y).float().mean().item()


def train_teacher(x, y):
    net = Gated(128)
    opt = torch.optim.Adam(net.parameters(), lr=5e-3)
    for _ in range(60):
        pick = torch.randint(0, len(x), (BATCH,))
        loss = F.cross_entropy(net(x[pick]), y[pick])
        opt.zero_grad()
        loss.backward()
        opt.step()
    return net.eval()


def objective(student_logits, teacher_logits, labels):
    log_student = F.log_softmax(student_logits / TAU, dim=1)
    soft_teacher = F.softmax(teacher_logits / TAU, dim=1)
    divergence = F.kl_div(log_student, soft_teacher, reduction="none").sum(dim=1).mean()
    return F.cross_entropy(student_logits, labels) + TAU * TAU * divergence


def main():
    centres = torch.randn(N_CLASSES, DIM)
    x, y = centre_samples(1200, centres)
    x_test, y_test = centre_samples(400, centres)

    teacher = train_teacher(x, y)
    print(f"teacher accuracy: {accuracy(teacher, x_test, y_test):.3f}")

    student = Gated(16)
    compiled = torch.compile(student, backend="eager")
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-2)
    student.train()
    for step in range(STEPS):
        pick = torch.randint(0, len(x), (BATCH,))
        inputs, labels = x[pick], y[pick]
        with torch.no_grad():
            teacher_logits = teacher(inputs)
        loss = objective(compiled(inputs), teacher_logits, labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_value_(student.parameters(), 1.0)
        optimizer.step()
        if step % 10 == 0:
            print(f"step {step}: loss {loss.item():.3f}")
    print(f"student accuracy: {accuracy(student, x_test, y_test):.3f}")


if __name__ == "__main__":
    main()
