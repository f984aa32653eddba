import copy
import torch
import torch.nn as nn
import torch.nn.functional as F


class EMAModel:
    """Exponential moving average of weights, with the usual warm-up of the decay."""

    def __init__(self, model, decay=0.99):
        self.averaged_model = copy.deepcopy(model).requires_grad_(False)
        self.decay = decay
        self.optimization_step = 0

    def get_decay(self, step):
        return min(self.decay, (1 + step) / (10 + step))

    @torch.no_grad()
    def step(self, model):
        self.optimization_step += 1
        self.decay = 1 - self.get_decay(self.optimization_step)
        one_minus_decay = self.decay
        for s, p in zip(self.averaged_model.parameters(), model.parameters()):
            s.sub_(one_minus_decay * (s - p))


class Consistency(nn.Module):
    """A one-dimensional consistency model: maps (x_t, t) to x_0."""

    def __init__(self, width=48):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 2))

    def forward(self, x, t):
        skip = 1 / (1 + t ** 2)
        return skip * x + t / (1 + t ** 2).sqrt() * self.net(torch.cat([x, t], -1))


def two_moons(n, gen):
    a = torch.rand(n, generator=gen) * 3.1416
    side = (torch.rand(n, generator=gen) < 0.5).float()
    x = torch.stack([a.cos() + side, (1 - 2 * side) * a.sin() + 0.5 * side], -1)
    return x + 0.05 * torch.randn(n, 2, generator=gen)


def main():
    torch.manual_seed(47)
    gen = torch.Generator().manual_seed(47)
    online = Consistency()
    target = EMAModel(online, decay=0.98)
    opt = torch.optim.Adam(online.parameters(), lr=2e-3)
    sigmas = torch.linspace(0.05, 2.0, 9)
    for it in range(150):
        x0 = two_moons(128, gen)
        k = torch.randint(0, 8, (128,), generator=gen)
        noise = torch.randn(128, 2, generator=gen)
        t_lo, t_hi = sigmas[k].unsqueeze(1), sigmas[k + 1].unsqueeze(1)
        with torch.no_grad():
            goal = target.averaged_model(x0 + t_lo * noise, t_lo)
        pred = online(x0 + t_hi * noise, t_hi)
        loss = F.huber_loss(pred, goal, delta=0.1) + 0.1 * F.mse_loss(online(x0 + 0.05 * noise, sigmas[:1].expand(128, 1)), x0)
        opt.zero_grad()
        loss.backward()
        opt.step()
        target.step(online)
        if it % 30 == 0:
            print(f"iter {it} loss {loss.item():.5f}")
    with torch.no_grad():
        z = 2.0 * torch.randn(512, 2, generator=gen)
        sample = target.averaged_model(z, torch.full((512, 1), 2.0))
        ref = two_moons(512, gen)
        print(f"nearest-data distance {torch.cdist(sample, ref).min(1).values.mean().item():.5f}")


if __name__ == "__main__":
    main()
