"""Three specialists, each with its own view of the measurements, are merged into one multi-task student."""
import torch
import torch.nn as nn
import torch.nn.functional as F

torch.manual_seed(90)
D, C = 24, 6
VIEWS = {"left": slice(0, 8), "mid": slice(8, 16), "right": slice(16, 24)}
WEIGHTS = {"left": 0.35, "mid": 0.35, "right": 0.3}
MU = torch.randn(C, D) * 0.9
REG = torch.randn(D) / D ** 0.5


def draw(n):
    y = torch.randint(0, C, (n,))
    x = MU[y] + torch.randn(n, D)
    r = (x * REG).sum(1) + 0.05 * torch.randn(n)
    return x, y, r


class TwoHead(nn.Module):
    def __init__(self, n_in, width):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(n_in, width), nn.LayerNorm(width), nn.GELU(),
                                  nn.Linear(width, width), nn.GELU())
        self.cls = nn.Linear(width, C)
        self.reg = nn.Linear(width, 1)

    def forward(self, x):
        h = self.body(x)
        return self.cls(h), self.reg(h).squeeze(-1)


def train_specialist(view):
    net = TwoHead(view.stop - view.start, 48)
    opt = torch.optim.AdamW(net.parameters(), lr=4e-3)
    for _ in range(100):
        x, y, r = draw(128)
        z, v = net(x[:, view])
        loss = F.cross_entropy(z, y) + F.mse_loss(v, r)
        opt.zero_grad()
        loss.backward()
        opt.step()
    return net.eval().requires_grad_(False)


class Committee:
    """named experts and how to ask them"""

    def __init__(self):
        self.ask = {}

    def register_all(self, nets):
        for name, net in nets.items():
            view = VIEWS[name]
            self.ask[name] = lambda x, net=net, view=view: net(x[:, view])

    @torch.no_grad()
    def opinion(self, x, tau):
        """weighted mixture of the probabilities, weighted mean of the values"""
        log_mix, value = [], 0.0
        for name, fn in self.ask.items():
            z, v = fn(x)
            w = WEIGHTS[name]
            log_mix.append((z / tau).log_softmax(-1) + torch.tensor(w).log())
            value = value + w * v
        return torch.logsumexp(torch.stack(log_mix), 0), value


class MixtureKD(nn.Module):
    def __init__(self, tau):
        super().__init__()
        self.tau = tau
        self.log_vars = nn.Parameter(torch.zeros(2))

    def forward(self, z, v, log_p, value):
        kl = F.kl_div((z / self.tau).log_softmax(-1), log_p, reduction="batchmean", log_target=True) * self.tau ** 2
        mse = F.smooth_l1_loss(v, value)
        parts = torch.stack([kl, mse])
        return (parts * (-self.log_vars).exp() + 0.5 * self.log_vars).sum(), parts.detach()


@torch.no_grad()
def score(fn):
    st = torch.get_rng_state()
    torch.manual_seed(4)
    x, y, r = draw(2000)
    torch.set_rng_state(st)
    z, v = fn(x)
    return f"accuracy {(z.argmax(-1) == y).float().mean():.3f} r2 {1 - F.mse_loss(v, r) / r.var():.3f}"


def main():
    nets = {name: train_specialist(view) for name, view in VIEWS.items()}
    for name, view in VIEWS.items():
        print(f"{name:6s}", score(lambda x: nets[name](x[:, view])))
    board = Committee()
    board.register_all(nets)
    print("board ", score(lambda x: board.opinion(x, 1.0)))

    torch.manual_seed(91)
    student, crit = TwoHead(D, 32), MixtureKD(2.0)
    opt = torch.optim.AdamW([{"params": student.parameters()},
                             {"params": crit.parameters(), "lr": 1e-2, "weight_decay": 0.0}], lr=6e-3)
    for step in range(90):
        x, _, _ = draw(96)
        loss, parts = crit(*student(x), *board.opinion(x, crit.tau))
        opt.zero_grad()
        loss.backward()
        opt.step()
        if step % 30 == 29:
            print(f"step {step + 1} kl {parts[0]:.4f} value {parts[1]:.4f}")
    print("student", score(student))


if __name__ == "__main__":
    main()
