import torch
import torch.nn as nn
import torch.nn.functional as F

torch.manual_seed(35)


class Det(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, c, 3, 2, 1, bias=False), nn.BatchNorm2d(c), nn.SiLU())
        self.neck = nn.Sequential(nn.Conv2d(c, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.SiLU())
        self.head = nn.Conv2d(16, 1 + 2, 1)

    def forward(self, x):
        f = self.neck(self.stem(x))
        return self.head(f), f


def scenes(n=16):
    x = 0.4 * torch.randn(n, 1, 24, 24)
    hit, off = torch.zeros(n, 6, 6), torch.zeros(n, 2, 6, 6)
    for i in range(n):
        r, c = (torch.rand(2) * 19).tolist()
        x[i, 0, int(r):int(r) + 4, int(c):int(c) + 4] += 1.2
        a, b = int(r + 2) // 4, int(c + 2) // 4
        hit[i, a, b] = 1
        off[i, :, a, b] = torch.tensor([(r + 2) / 4 - a, (c + 2) / 4 - b])
    return x, hit, off


def det_loss(out, hit, off):
    l1 = ((out[:, 1:].sigmoid() - off).abs().sum(1) * hit).sum() / hit.sum()
    return F.binary_cross_entropy_with_logits(out[:, 0], hit, pos_weight=torch.tensor(10.0)) + l1


class Trainer:
    def __init__(self, model, Distillation=None, lr=2e-3, decay=5e-4):
        self.model, self.Distillation = model, Distillation
        if Distillation is not None:
            Distillation.eval()
            Distillation.requires_grad_(False)
        self.optimizer = self.build_optimizer(model, Distillation, lr, decay)

    def build_optimizer(self, model, model1, lr, decay):
        g = [], [], []
        for net in (model, model1):
            for m in [] if net is None else net.modules():
                if isinstance(getattr(m, "bias", None), nn.Parameter):
                    g[2].append(m.bias)
                if isinstance(m, nn.BatchNorm2d):
                    g[1].append(m.weight)
                elif isinstance(getattr(m, "weight", None), nn.Parameter):
                    g[0].append(m.weight)
        opt = torch.optim.Adam(g[2], lr=lr)
        opt.add_param_group({"params": g[0], "weight_decay": decay})
        opt.add_param_group({"params": g[1], "weight_decay": 0.0})
        return opt

    def train(self, iters, log):
        self.model.train()
        for it in range(iters):
            x, hit, off = scenes()
            out, feat = self.model(x)
            loss, d = det_loss(out, hit, off), torch.zeros(())
            if self.Distillation is not None:
                t_out, t_feat = self.Distillation(x)
                d = F.mse_loss(feat, t_feat) + F.binary_cross_entropy_with_logits(out[:, 0], t_out[:, 0].sigmoid())
            self.optimizer.zero_grad()
            (loss + 2.0 * d).backward()
            self.optimizer.step()
            if it % 25 == 0:
                print(f"{log} {it} det {loss.item():.4f} distill {d.item():.4f}")
        return loss.item(), d.item()


big, small = Det(32), Det(6)
Trainer(big).train(60, "teacher")
last = Trainer(small, Distillation=big).train(90, "student")
print("last det %.4f distill %.4f" % last)
