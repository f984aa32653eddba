"""Masked latent prediction with an averaged teacher, started from a supervised encoder."""
import copy

import torch
import torch.nn as nn
import torch.nn.functional as F

torch.manual_seed(6)
P, DIN, CLS, W = 12, 10, 5, 48      # patches, patch size, classes, width
codes = torch.randn(CLS, P, DIN)


def get(n):
    y = torch.randint(0, CLS, (n,))
    shift = torch.randn(n, 1, DIN) * 0.7
    return codes[y] + shift + 1.2 * torch.randn(n, P, DIN), y


class Block(nn.Module):
    def __init__(self, w, heads=4):
        super().__init__()
        self.n1, self.n2 = nn.LayerNorm(w), nn.LayerNorm(w)
        self.att = nn.MultiheadAttention(w, heads, batch_first=True)
        self.ff = nn.Sequential(nn.Linear(w, 2 * w), nn.GELU(), nn.Linear(2 * w, w))

    def forward(self, x):
        h = self.n1(x)
        x = x + self.att(h, h, h, need_weights=False)[0]
        f = self.ff(self.n2(x))
        return x + f, f


class Encoder(nn.Module):
    def __init__(self, depth=3):
        super().__init__()
        self.embed = nn.Linear(DIN, W)
        self.pos = nn.Parameter(torch.randn(P, W) * 0.1)
        self.mask_token = nn.Parameter(torch.zeros(W))
        self.blocks = nn.ModuleList([Block(W) for _ in range(depth)])

    def forward(self, x, mask=None):
        h = self.embed(x)
        if mask is not None:
            h = torch.where(mask[..., None], self.mask_token, h)
        h = h + self.pos
        states = []
        for b in self.blocks:
            h, f = b(h)
            states.append(f)
        return h, states


class Data2Vec(nn.Module):
    def __init__(self, encoder, tau=0.98, top_k=2):
        super().__init__()
        self.online = encoder
        self.ema = copy.deepcopy(encoder).requires_grad_(False)
        self.head = nn.Linear(W, W)
        self.tau, self.top_k = tau, top_k

    @torch.no_grad()
    def ema_step(self):
        for pe, po in zip(self.ema.parameters(), self.online.parameters()):
            pe.mul_(self.tau).add_(po, alpha=1 - self.tau)

    def forward(self, src, trg, mask):
        x, _ = self.online(src, mask)
        x = self.head(x)
        with torch.no_grad():
            self.ema.eval()
            _, states = self.ema(trg)
            y = [F.layer_norm(s, s.shape[-1:]) for s in states[-self.top_k:]]
            y = F.layer_norm(torch.stack(y).mean(0), (W,))
        return x[mask], y[mask]


def pretrain(steps=60):
    enc, cls = Encoder(), nn.Linear(W, CLS)
    opt = torch.optim.AdamW([*enc.parameters(), *cls.parameters()], lr=2e-3)
    for _ in range(steps):
        x, y = get(64)
        loss = F.cross_entropy(cls(enc(x)[0].mean(1)), y)
        opt.zero_grad()
        loss.backward()
        opt.step()
    with torch.no_grad():
        x, y = get(500)
        print(f"start encoder accuracy {(cls(enc(x)[0].mean(1)).argmax(1) == y).float().mean():.3f}")
    return enc


def random_mask(n, rate=0.5):
    k = int(P * rate)
    order = torch.rand(n, P).argsort(1)
    return order < k


def masked_fit(model, n=400):
    """share of target variance explained when the target comes from the full input"""
    with torch.no_grad():
        torch.manual_seed(70)
        x, _ = get(n)
        m = random_mask(n)
        pred = model.head(model.online(x, m)[0])[m]
        full = [F.layer_norm(s, (W,)) for s in model.ema(x)[1][-model.top_k:]]
        tgt = F.layer_norm(torch.stack(full).mean(0), (W,))[m]
        return (1 - (pred - tgt).pow(2).sum() / (tgt - tgt.mean(0)).pow(2).sum()).item()


def run(steps=90):
    model = Data2Vec(pretrain())
    opt = torch.optim.AdamW([*model.online.parameters(), *model.head.parameters()], lr=1.5e-3, weight_decay=0.01)
    model.train()
    for i in range(steps):
        x, _ = get(48)
        pred, tgt = model(x, x, random_mask(len(x)))
        loss = F.smooth_l1_loss(pred, tgt, beta=0.5)
        opt.zero_grad()
        loss.backward()
        opt.step()
        model.ema_step()
        if i % 30 == 29:
            print(f"step {i + 1} loss {loss.item():.4f}")
    print(f"explained variance of full-input targets {masked_fit(model):.3f}")


if __name__ == "__main__":
    run()
