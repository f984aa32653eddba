"""Train a residual teacher, store it, and distil it into a shallow residual student with a Trainer class."""

import argparse
import tempfile

import torch
import torch.nn.functional as F
from models import resnet_student, resnet_teacher
from utils import evaluate, get_loaders, load_checkpoint, save_checkpoint


def parse_args():
    p = argparse.ArgumentParser()
    p.add_argument("--num-classes", type=int, default=5)
    p.add_argument("--batch-size", type=int, default=32)
    p.add_argument("--epochs", type=int, default=4)
    p.add_argument("--teacher-epochs", type=int, default=2)
    p.add_argument("--lr", type=float, default=0.05)
    p.add_argument("--temperature", type=float, default=3.0)
    p.add_argument("--kd-weight", type=float, default=0.8)
    p.add_argument("--seed", type=int, default=1)
    return p.parse_args()


def fit_teacher(args, train_loader, folder):
    net = resnet_teacher(args.num_classes)
    opt = torch.optim.Adam(net.parameters(), lr=5e-3)
    for _ in range(args.teacher_epochs):
        net.train()
        for x, y in train_loader:
            opt.zero_grad()
            F.cross_entropy(net(x), y).backward()
            opt.step()
    save_checkpoint(net, folder, "resnet_teacher")


class DistillTrainer:
    def __init__(self, args, teacher, student, train_loader, val_loader):
        self.args = args
        self.teacher = teacher
        self.student = student
        self.train_loader = train_loader
        self.val_loader = val_loader
        self.optimizer = torch.optim.SGD(student.parameters(), lr=args.lr, momentum=0.9, nesterov=True)
        steps = args.epochs * len(train_loader)
        self.scheduler = torch.optim.lr_scheduler.OneCycleLR(self.optimizer, max_lr=args.lr, total_steps=steps)

    def soft_loss(self, s, t):
        tau = self.args.temperature
        p_t = torch.softmax(t / tau, dim=-1)
        log_p_s = torch.log_softmax(s / tau, dim=-1)
        return F.kl_div(log_p_s, p_t, reduction="sum") / s.size(0) * tau**2

    def step(self, x, y):
        with torch.no_grad():
            t = self.teacher(x)
        s = self.student(x)
        w = self.args.kd_weight
        loss = w * self.soft_loss(s, t) + (1 - w) * F.cross_entropy(s, y)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        self.scheduler.step()
        return loss.item()

    def run(self):
        self.teacher.eval()
        for epoch in range(self.args.epochs):
            self.student.train()
            losses = [self.step(x, y) for x, y in self.train_loader]
            acc = evaluate(self.student, self.val_loader)
            print(f"[{epoch + 1}/{self.args.epochs}] loss {sum(losses) / len(losses):.4f} val acc {acc:.1f}%")
        return acc


def main():
    args = parse_args()
    torch.manual_seed(args.seed)
    train_loader, val_loader = get_loaders(args.num_classes, args.batch_size)
    with tempfile.TemporaryDirectory() as folder:
        fit_teacher(args, train_loader, folder)
        teacher = load_checkpoint(resnet_teacher(args.num_classes), folder, "resnet_teacher")
    print(f"teacher acc {evaluate(teacher, val_loader):.1f}%")
    student = resnet_student(args.num_classes)
    acc = DistillTrainer(args, teacher, student, train_loader, val_loader).run()
    print(f"final student accuracy {acc:.1f}%")


if __name__ == "__main__":
    main()
