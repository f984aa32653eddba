"""Quantisation-aware distillation: full-precision reference, 2-bit weights / 4-bit activations in the student."""
import copy

import torch
import torch.nn as nn
import torch.nn.functional as F

torch.manual_seed(64)


class RoundSTE(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, lo, hi):
        ctx.save_for_backward((x >= lo) & (x <= hi))
        return x.round().clamp(lo, hi)

    @staticmethod
    def backward(ctx, g):
        (inside,) = ctx.saved_tensors
        return g * inside, None, None


class QLinear(nn.Module):
    def __init__(self, lin, w_bits, a_bits):
        super().__init__()
        self.weight, self.bias = lin.weight, lin.bias
        self.w_hi = 2 ** (w_bits - 1) - 1
        self.a_hi = 2 ** a_bits - 1
        self.register_buffer("a_max", torch.tensor(0.0))

    def forward(self, x):
        if self.training:
            with torch.no_grad():
                m = x.abs().max()
                self.a_max.copy_(m if self.a_max == 0 else 0.9 * self.a_max + 0.1 * m)
        sa = (self.a_max / (self.a_hi // 2)).clamp(min=1e-6)
        xq = RoundSTE.apply(x / sa, -(self.a_hi // 2), self.a_hi // 2) * sa
        sw = 2 * self.weight.detach().abs().mean(1, keepdim=True)
        wq = RoundSTE.apply(self.weight / sw, -self.w_hi, self.w_hi) * sw
        return F.linear(xq, wq, self.bias)


def quantize_(model, w_bits=2, a_bits=4, skip=("head",)):
    for name, child in list(model.named_children()):
        if isinstance(child, nn.Linear) and name not in skip:
            setattr(model, name, QLinear(child, w_bits, a_bits))
        else:
            quantize_(child, w_bits, a_bits, skip)
    return model


class Net(nn.Module):
    def __init__(self, d=16, w=64, c=8):
        super().__init__()
        self.l1, self.l2, self.l3 = nn.Linear(d, w), nn.Linear(w, w), nn.Linear(w, w)
        self.head = nn.Linear(w, c)

    def forward(self, x):
        x = F.relu(self.l1(x))
        x = x + F.relu(self.l2(x))
        x = x + F.relu(self.l3(x))
        return self.head(x)


PROTO = torch.randn(8, 3, 16) * 0.9


def stream(n):
    y = torch.randint(0, 8, (n,))
    k = torch.randint(0, 3, (n,))
    return PROTO[y, k] + 0.9 * torch.randn(n, 16), y


@torch.no_grad()
def top1(net):
    mode = net.training
    net.eval()
    st = torch.get_rng_state()
    torch.manual_seed(8)
    x, y = stream(3000)
    torch.set_rng_state(st)
    acc = (net(x).argmax(1) == y).float().mean().item()
    net.train(mode)
    return acc


def pretrain(steps=400):
    net = Net()
    opt = torch.optim.Adam(net.parameters(), lr=3e-3)
    for _ in range(steps):
        x, y = stream(128)
        loss = F.cross_entropy(net(x), y)
        opt.zero_grad()
        loss.backward()
        opt.step()
    return net


def calibrate(net, n=4):
    net.train()
    with torch.no_grad():
        for _ in range(n):
            net(stream(128)[0])


def main():
    model = pretrain()
    print(f"full precision {top1(model):.3f}")
    reference = copy.deepcopy(model)
    quantize_(model)
    calibrate(model)
    reference.eval().requires_grad_(False)
    print(f"reference {top1(reference):.3f}, quantised before training {top1(model):.3f}")

    params = [p for p in model.parameters() if p.requires_grad]
    opt = torch.optim.Adam(params, lr=2e-3)
    sched = torch.optim.lr_scheduler.LinearLR(opt, 1.0, 0.1, 100)
    model.train()
    for step in range(100):
        x, _ = stream(128)
        with torch.no_grad():
            ref = reference(x)
        loss = F.kl_div(model(x).log_softmax(1), ref.log_softmax(1), reduction="batchmean", log_target=True)
        opt.zero_grad()
        loss.backward()
        opt.step()
        sched.step()
        if step % 25 == 24:
            print(f"step {step + 1} kl {loss.item():.4f}")
    print(f"quantised after training {top1(model):.3f}")


if __name__ == "__main__":
    main()
