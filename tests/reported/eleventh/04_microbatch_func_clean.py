"""Memory-limited distillation: each batch is cut into micro-batches (the last one
is shorter) and the gradients are taken with torch.func, then handed to SGD.
The objective is the mean over the whole batch.
"""
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call, grad_and_value

SEED, BATCH, MICRO, STEPS = 3, 160, 48, 120
ARMS, TAU, ALPHA = 5, 3.0, 0.7


def spiral(n, gen, jitter=0.12):
    y = torch.randint(0, ARMS, (n,), generator=gen)
    r = torch.rand(n, generator=gen) * 0.85 + 0.15
    a = 3.2 * r + y * (2 * torch.pi / ARMS) + jitter * torch.randn(n, generator=gen)
    x = torch.stack([r * a.cos(), r * a.sin()], 1)
    freq = torch.tensor([1.0, 2.0, 4.0])
    feats = (x[:, :, None] * freq).flatten(1)
    return torch.cat([feats.sin(), feats.cos()], 1), y


class ResMLP(nn.Module):
    def __init__(self, width, depth):
        super().__init__()
        self.stem = nn.Linear(12, width)
        self.body = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.head = nn.Linear(width, ARMS)

    def forward(self, x):
        h = F.gelu(self.stem(x))
        for layer in self.body:
            h = h + F.gelu(layer(h))
        return self.head(h)


def summed_objective(params, model, x, y, t_logits):
    s_logits = functional_call(model, params, (x,))
    log_q = F.log_softmax(s_logits / TAU, 1)
    p = F.softmax(t_logits / TAU, 1)
    kd = F.kl_div(log_q, p, reduction="sum") * TAU ** 2
    ce = F.cross_entropy(s_logits, y, reduction="sum")
    return ALPHA * kd + (1 - ALPHA) * ce


def train_teacher(gen):
    net = ResMLP(96, 3)
    opt = torch.optim.AdamW(net.parameters(), lr=3e-3)
    for _ in range(250):
        x, y = spiral(128, gen)
        opt.zero_grad(set_to_none=True)
        F.cross_entropy(net(x), y).backward()
        opt.step()
    net.eval()
    return net.requires_grad_(False)


def distill_step(student, teacher, opt, x, y):
    opt.zero_grad(set_to_none=True)
    with torch.no_grad():
        t_logits = teacher(x)
    total = 0.0
    live = {n: p.detach() for n, p in student.named_parameters()}
    for xs, ys, ts in zip(x.split(MICRO), y.split(MICRO), t_logits.split(MICRO)):
        grads, value = grad_and_value(summed_objective)(live, student, xs, ys, ts)
        for name, p in student.named_parameters():
            g = grads[name] / x.size(0)
            p.grad = g if p.grad is None else p.grad + g
        total += value.item() / x.size(0)
    opt.step()
    return total


def accuracy(net, x, y):
    with torch.no_grad():
        return (net(x).argmax(1) == y).float().mean().item()


def main():
    torch.manual_seed(SEED)
    gen = torch.Generator().manual_seed(SEED)
    x_test, y_test = spiral(2000, torch.Generator().manual_seed(1234))
    teacher = train_teacher(gen)
    print("teacher acc %.3f" % accuracy(teacher, x_test, y_test))

    student = ResMLP(32, 1)
    opt = torch.optim.SGD(student.parameters(), lr=0.05, momentum=0.9, nesterov=True)
    warm = torch.optim.lr_scheduler.LinearLR(opt, 0.1, 1.0, total_iters=10)
    for step in range(STEPS):
        x, y = spiral(BATCH, gen)
        value = distill_step(student, teacher, opt, x, y)
        warm.step()
        if (step + 1) % 30 == 0:
            print("step %d loss %.4f acc %.3f" % (step + 1, value, accuracy(student, x_test, y_test)))


if __name__ == "__main__":
    main()
