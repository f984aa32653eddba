"""Denoiser training with representation alignment to a frozen encoder (REPA style)."""
import torch
from torch import nn
import torch.nn.functional as F
torch.set_num_threads(1)
torch.manual_seed(1)
CFG = dict(dim=32, hidden=96, feat=48, steps=600, batch=128, lam=0.5, lr=1e-3, T=50)


def sample_data(n, basis, g):
    k = torch.randint(0, basis.shape[0], (n,), generator=g)
    return basis[k] + 0.35 * torch.randn(n, basis.shape[1], generator=g), k


class Encoder(nn.Module):
    def __init__(self, d, f, n_cls):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(d, 128), nn.GELU(), nn.Linear(128, f))
        self.cls = nn.Linear(f, n_cls)

    def forward(self, x):
        return self.cls(F.gelu(self.body(x)))


class Denoiser(nn.Module):
    def __init__(self, d, h, T):
        super().__init__()
        self.time = nn.Embedding(T, h)
        self.inp, self.mid, self.out = nn.Linear(d, h), nn.Linear(h, h), nn.Linear(h, d)

    def forward(self, x, t):
        h = F.silu(self.inp(x) + self.time(t))
        h = F.silu(self.mid(h))
        return self.out(h), h


class AlignmentLoss(nn.Module):
    def __init__(self, h, f):
        super().__init__()
        self.projector = nn.Sequential(nn.Linear(h, 64), nn.SiLU(), nn.Linear(64, f))

    def forward(self, h, feat):
        return 1 - F.cosine_similarity(self.projector(h), feat, dim=-1).mean()


def noised(x0, t, abar, g):
    eps, a = torch.randn(x0.shape, generator=g), abar[t][:, None]
    return a.sqrt() * x0 + (1 - a).sqrt() * eps, eps


def main():
    g = torch.Generator().manual_seed(2)
    basis = torch.randn(12, CFG["dim"], generator=g)
    abar = torch.cumprod(1 - torch.linspace(1e-3, 0.12, CFG["T"]), 0)

    enc = Encoder(CFG["dim"], CFG["feat"], 12)
    opt = torch.optim.Adam(enc.parameters(), lr=2e-3)
    for _ in range(200):
        x, k = sample_data(128, basis, g)
        opt.zero_grad()
        F.cross_entropy(enc(x), k).backward()
        opt.step()
    enc.eval().requires_grad_(False)

    net = Denoiser(CFG["dim"], CFG["hidden"], CFG["T"])
    align = AlignmentLoss(CFG["hidden"], CFG["feat"])
    params = list(net.parameters())
    opt = torch.optim.AdamW(params, lr=CFG["lr"])
    xv, _ = sample_data(512, basis, g)
    tv = torch.randint(0, CFG["T"], (512,), generator=g)
    nv, ev = noised(xv, tv, abar, g)
    for step in range(1, CFG["steps"] + 1):
        x0, _ = sample_data(CFG["batch"], basis, g)
        t = torch.randint(0, CFG["T"], (len(x0),), generator=g)
        xt, eps = noised(x0, t, abar, g)
        pred, h = net(xt, t)
        with torch.no_grad():
            feat = enc.body(x0)
        mse, rep = F.mse_loss(pred, eps), align(h, feat)
        opt.zero_grad(set_to_none=True)
        (mse + CFG["lam"] * rep).backward()
        opt.step()
        if step % 150 == 0:
            with torch.no_grad():
                pv, hv = net(nv, tv)
                print(f"{step:4d} mse {mse.item():.4f} align {rep.item():.4f} | "
                      f"val mse {F.mse_loss(pv, ev).item():.4f} val align {align(hv, enc.body(xv)).item():.4f}")


main()
