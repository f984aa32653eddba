"""Normalised KD (target term + non-target term) on synthetic glyph classification."""
import torch
import torch.nn as nn
import torch.nn.functional as F
CFG = {"seed": 6, "classes": 12, "dim": 40, "gamma": 1.5, "temp": 1.0,
       "batch": 64, "teacher": {"hidden": 128, "steps": 250, "lr": 3e-3},
       "student": {"hidden": 20, "steps": 960, "lr": 4e-3}}


class NKDLoss(nn.Module):
    def __init__(self, temp, gamma):
        super().__init__()
        self.temp, self.gamma = temp, gamma

    def forward(self, logit_s, logit_t, gt_label):
        n, c = logit_s.shape
        label = gt_label.view(n, 1)
        s_i, t_i = F.log_softmax(logit_s, dim=1), F.softmax(logit_t, dim=1)
        s_t, t_t = s_i.gather(1, label), t_i.gather(1, label)
        loss_t = -(t_t * s_t).mean()
        mask = torch.ones_like(logit_s).scatter_(1, label, 0).bool()
        logit_s, logit_t = logit_s[mask].reshape(n, -1), logit_t[mask].reshape(n, -1)
        s_hat = F.log_softmax(logit_s / self.temp, dim=1)
        t_hat = F.softmax(logit_t / self.temp, dim=1)
        loss_non = -(t_hat * s_hat).sum(dim=1).mean()
        return loss_t + self.gamma * self.temp ** 2 * loss_non, loss_t, loss_non


def build(hidden):
    return nn.Sequential(nn.Linear(CFG["dim"], hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(),
                         nn.Linear(hidden, CFG["classes"]))


def dataset(g):
    centres = torch.randn(CFG["classes"], CFG["dim"], generator=g)
    centres = 0.6 * (centres + centres.roll(1, 0))  # neighbouring classes look alike

    def draw(n):
        y = torch.randint(0, CFG["classes"], (n,), generator=g)
        return centres[y] + 1.1 * torch.randn(n, CFG["dim"], generator=g), y
    return draw


def sampler(x, y, g):
    while True:
        for idx in torch.randperm(len(x), generator=g).split(CFG["batch"]):
            yield x[idx], y[idx]


def fit(net, batches, loss_fn, steps, lr):
    opt = torch.optim.Adam(net.parameters(), lr=lr)
    net.train()
    for step in range(1, steps + 1):
        x, y = next(batches)
        loss, *parts = loss_fn(net(x), x, y)
        opt.zero_grad()
        loss.backward()
        opt.step()
        if parts and step % 160 == 0:
            print(f"step {step} loss {loss.item():.4f} target {parts[0].item():.4f} other {parts[1].item():.4f}")
    return net.eval()


def main():
    torch.manual_seed(CFG["seed"])
    torch.set_num_threads(1)
    g = torch.Generator().manual_seed(CFG["seed"])
    draw = dataset(g)
    (x, y), (vx, vy) = draw(4000), draw(1500)
    feed = sampler(x, y, g)
    teacher = fit(build(CFG["teacher"]["hidden"]), feed, lambda out, x, y: (F.cross_entropy(out, y),),
                  CFG["teacher"]["steps"], CFG["teacher"]["lr"]).requires_grad_(False)
    nkd = NKDLoss(CFG["temp"], CFG["gamma"])

    def distill_loss(out, x, y):
        with torch.no_grad():
            ref = teacher(x)
        total, target, other = nkd(out, ref, y)
        return F.cross_entropy(out, y) + total, target, other

    student = fit(build(CFG["student"]["hidden"]), feed, distill_loss, CFG["student"]["steps"], CFG["student"]["lr"])
    with torch.no_grad():
        p = teacher(vx).softmax(1)
        gap = F.kl_div(student(vx).log_softmax(1), p, reduction="batchmean").item()
        rest = [net(vx).scatter(1, vy[:, None], -1e9).log_softmax(1) for net in (student, teacher)]
        dark = F.kl_div(rest[0], rest[1].exp(), reduction="batchmean").item()
        accs = [(net(vx).argmax(1) == vy).float().mean().item() for net in (teacher, student)]
    print("val acc teacher %.3f student %.3f | kl %.4f | kl among wrong classes %.4f" % (*accs, gap, dark))

main()
