import argparse
import torch
import torch.nn as nn
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, TensorDataset

parser = argparse.ArgumentParser()
parser.add_argument("--alpha", type=float, default=0.8)
parser.add_argument("--temperature", type=float, default=4.0)
parser.add_argument("--num_epochs", type=int, default=4)
parser.add_argument("--batch_size", type=int, default=48)


def mlp(hidden):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(),
                         nn.Linear(hidden, 10))


def loss_fn_kd(outputs, labels, teacher_outputs, params):
    T, alpha = params.temperature, params.alpha
    kd = nn.KLDivLoss(reduction="batchmean")(F.log_softmax(outputs / T, dim=1), F.softmax(teacher_outputs / T, dim=1))
    return kd * alpha * T * T + F.cross_entropy(outputs, labels) * (1.0 - alpha)


def fetch_teacher_outputs(teacher, dataloader):
    teacher.eval()
    outs = []
    with torch.no_grad():
        for x, _ in dataloader:
            outs.append(teacher(x).numpy())
    return outs


def train_kd(model, teacher_outputs, optimizer, dataloader, params, teacher):
    model.train()
    running = 0.0
    for i, (train_batch, labels_batch) in enumerate(dataloader):
        output_batch = model(train_batch)
        with torch.no_grad():
            output_teacher_batch = teacher(train_batch)
        loss = loss_fn_kd(output_batch, labels_batch, output_teacher_batch, params)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        running += loss.item()
    return running / (i + 1)


def evaluate(model, x, y):
    model.eval()
    with torch.no_grad():
        return (model(x).argmax(1) == y).float().mean().item()


if __name__ == "__main__":
    params = parser.parse_args([])
    torch.manual_seed(230)
    digits = load_digits()
    x, y = torch.tensor(digits.data, dtype=torch.float32) / 16, torch.tensor(digits.target)
    train_dl = DataLoader(TensorDataset(x[:1200], y[:1200]), params.batch_size, shuffle=True)
    teacher_model, student_model = mlp(96), mlp(16)
    opt = torch.optim.Adam(teacher_model.parameters(), 3e-3)
    for _ in range(4):
        for a, b in train_dl:
            opt.zero_grad(); F.cross_entropy(teacher_model(a), b).backward(); opt.step()
    optimizer = torch.optim.Adam(student_model.parameters(), 3e-3)
    teacher_outputs = fetch_teacher_outputs(teacher_model, train_dl)
    for epoch in range(params.num_epochs):
        loss = train_kd(student_model, teacher_outputs, optimizer, train_dl, params, teacher_model)
        print(f"epoch {epoch + 1}/{params.num_epochs} loss {loss:.4f} val {evaluate(student_model, x[1200:], y[1200:]):.4f}")
    print("final accuracy", round(evaluate(student_model, x[1200:], y[1200:]), 4))
