import argparse
import pathlib
import tempfile
import torch
import torch.nn as nn
import torch.nn.functional as F


class LowRank(nn.Module):
    def __init__(self, linear, r):
        super().__init__()
        self.linear = linear
        self.down = nn.Parameter(torch.randn(r, linear.in_features) / linear.in_features ** 0.5)
        self.up = nn.Parameter(torch.zeros(linear.out_features, r))

    def forward(self, x):
        return self.linear(x) + x @ self.down.t() @ self.up.t()


class Net(nn.Module):
    def __init__(self, dim=18, width=64, classes=6):
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(dim, width), nn.Linear(width, width), nn.Linear(width, classes)

    def forward(self, x):
        return self.fc3(F.gelu(self.fc2(F.gelu(self.fc1(x)))))


def with_adapters(base_path, adapter_path=None, r=8):
    net = Net()
    net.load_state_dict(torch.load(base_path))
    net.requires_grad_(False)
    net.fc1, net.fc2, net.fc3 = LowRank(net.fc1, r), LowRank(net.fc2, r), LowRank(net.fc3, r)
    if adapter_path is not None:
        missing, unexpected = net.load_state_dict(torch.load(adapter_path), strict=False)
        assert not unexpected and all(".linear." in m for m in missing)
    return net


def adapter_state(net):
    return {k: v for k, v in net.state_dict().items() if ".linear." not in k}


def trainable(net):
    return [p for p in net.parameters() if p.requires_grad]


def sgd_on_labels(net, task, steps, lr=3e-3, pool=None):
    opt = torch.optim.Adam(trainable(net), lr=lr)
    for _ in range(steps):
        x, y = task(64) if pool is None else pool
        opt.zero_grad()
        F.cross_entropy(net(x), y).backward()
        opt.step()


def make_task(seed):
    g = torch.Generator().manual_seed(seed)
    mu = torch.randn(6, 2, 18, generator=g) * 1.1

    def task(n):
        y = torch.randint(6, (n,))
        return mu[y, torch.randint(2, (n,))] + 0.9 * torch.randn(n, 18), y
    return task


def get_teacher(args):
    teacher = with_adapters(args.base_path, args.peft_path)
    return teacher.eval().requires_grad_(False)


def get_student(args):
    return with_adapters(args.base_path, args.peft_path)


def prepare(args, task):
    base = Net()
    sgd_on_labels(base, make_task(1), 150)
    torch.save(base.state_dict(), args.base_path)
    short = with_adapters(args.base_path)
    sgd_on_labels(short, task, 25, pool=task(40))
    torch.save(adapter_state(short), args.peft_path)
    full = with_adapters(args.base_path)
    sgd_on_labels(full, task, 500)
    torch.save(adapter_state(full), args.teacher_peft_path)


def acc(net, data):
    with torch.no_grad():
        return round((net(data[0]).argmax(1) == data[1]).float().mean().item(), 3)


if __name__ == "__main__":
    p = argparse.ArgumentParser()
    p.add_argument("--steps", type=int, default=250)
    p.add_argument("--lr", type=float, default=3e-3)
    args = p.parse_args()
    torch.manual_seed(2718)
    room = tempfile.TemporaryDirectory()
    for name in ("base_path", "peft_path", "teacher_peft_path"):
        setattr(args, name, pathlib.Path(room.name) / f"{name}.pt")
    task = make_task(2)
    prepare(args, task)
    student, teacher, held = get_student(args), get_teacher(args), task(800)
    print("student", acc(student, held))
    opt = torch.optim.Adam(trainable(student), lr=args.lr)
    for it in range(args.steps):
        x, _ = task(64)
        with torch.no_grad():
            p_t = teacher(x).softmax(1)
        loss = F.kl_div(student(x).log_softmax(1), p_t, reduction="batchmean")
        opt.zero_grad()
        loss.backward()
        opt.step()
        if it % 50 == 0:
            print(it, "kl", round(loss.item(), 4))
    print("student", acc(student, held))
    room.cleanup()
