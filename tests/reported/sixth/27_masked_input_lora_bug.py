"""The base network, seeing everything, teaches its own low-rank variant that sees half the sensors."""
import torch
import torch.nn as nn
import torch.nn.functional as F

torch.manual_seed(9090)


class LoraLinear(nn.Module):
    def __init__(self, base_layer, rank=4):
        super().__init__()
        self.base_layer = base_layer
        self.lora_A = nn.Parameter(0.2 * torch.randn(rank, base_layer.in_features))
        self.lora_B = nn.Parameter(torch.zeros(base_layer.out_features, rank))
        self.enabled = True

    def forward(self, x):
        y = self.base_layer(x)
        return y + x @ self.lora_A.t() @ self.lora_B.t() if self.enabled else y


def inject(module, rank):
    for name, child in module.named_children():
        if isinstance(child, nn.Linear):
            setattr(module, name, LoraLinear(child, rank))
        else:
            inject(child, rank)


def set_lora(module, flag):
    for m in module.modules():
        if isinstance(m, LoraLinear):
            m.enabled = flag


def mark_trainable(module):
    for name, p in module.named_parameters():
        p.requires_grad_(True)


class Pipeline:
    def __init__(self, sensors=20, classes=6):
        self.mu = torch.randn(classes, sensors)
        self.classes, self.sensors = classes, sensors
        self.hidden = torch.arange(sensors) % 2 == 0
        self.transformer = nn.Sequential(nn.Linear(sensors, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, classes))

    def batch(self, n):
        y = torch.randint(self.classes, (n,))
        x = self.mu[y] + 0.9 * torch.randn(n, self.sensors)
        return x, x.masked_fill(self.hidden, 0.0), y

    def pretrain(self, steps):
        opt = torch.optim.Adam(self.transformer.parameters(), lr=3e-3)
        for _ in range(steps):
            x, _, y = self.batch(64)
            opt.zero_grad()
            F.cross_entropy(self.transformer(x), y).backward()
            opt.step()

    def prepare_lora(self, rank, lr):
        inject(self.transformer, rank)
        mark_trainable(self.transformer)
        self.optimizer = torch.optim.AdamW([p for p in self.transformer.parameters() if p.requires_grad], lr=lr)

    @torch.no_grad()
    def base_scores(self, x):
        set_lora(self.transformer, False)
        out = self.transformer(x)
        set_lora(self.transformer, True)
        return out

    def train_one_step(self):
        x, partial, _ = self.batch(64)
        ref = self.base_scores(x)
        loss = F.kl_div(self.transformer(partial).log_softmax(1), ref.softmax(1), reduction="batchmean")
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.item()

    @torch.no_grad()
    def report(self):
        x, partial, y = self.batch(2000)
        return (f"base on all {(self.base_scores(x).argmax(1) == y).float().mean().item():.3f} "
                f"lora on half {(self.transformer(partial).argmax(1) == y).float().mean().item():.3f}")


pipe = Pipeline()
pipe.pretrain(250)
pipe.prepare_lora(rank=6, lr=4e-3)
print("start", pipe.report())
for step in range(400):
    value = pipe.train_one_step()
    if step % 80 == 0:
        print(step, f"kl {value:.4f}", pipe.report())
print("end", pipe.report())
