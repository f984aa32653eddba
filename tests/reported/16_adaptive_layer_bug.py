import torch
import torch.nn as nn
import torch.nn.functional as F

torch.manual_seed(16)


class Encoder(nn.Module):
    def __init__(self, vocab=64, dim=32, layers=3):
        super().__init__()
        self.emb = nn.Embedding(vocab, dim)
        self.layers = nn.ModuleList(nn.TransformerEncoderLayer(dim, 4, 64, 0.0, batch_first=True) for _ in range(layers))

    def forward(self, ids):
        h, outs = self.emb(ids), []
        mask = (ids > 0).float().unsqueeze(-1)
        for layer in self.layers:
            h = layer(h, src_key_padding_mask=ids == 0)
            outs.append((h * mask).sum(1) / mask.sum(1))
        return outs


class InfoNCE(nn.Module):
    def __init__(self, scale=10.0):
        super().__init__()
        self.scale = scale

    def forward(self, a, b):
        sim = F.normalize(a, dim=-1) @ F.normalize(b, dim=-1).T * self.scale
        return F.cross_entropy(sim, torch.arange(len(a)))


class AdaptiveLayerLoss(nn.Module):
    """Trains every layer to be usable, and pulls the prior layers towards the final one."""

    def __init__(self, model, loss, prior_weight=1.0, last_weight=1.0, kl_weight=1.0, temperature=0.3):
        super().__init__()
        self.model, self.loss = model, loss
        self.prior_weight, self.last_weight = prior_weight, last_weight
        self.kl_weight, self.temperature = kl_weight, temperature

    def forward(self, anchors, positives):
        outs_a, outs_b = self.model(anchors), self.model(positives)
        loss = self.last_weight * self.loss(outs_a[-1], outs_b[-1])
        final_embeddings = F.softmax(outs_a[-1] / self.temperature, dim=-1)
        n_prior = len(outs_a) - 1
        for idx in range(n_prior):
            layer_loss = self.loss(outs_a[idx], outs_b[idx])
            loss = loss + self.prior_weight * layer_loss / (1 + idx) / n_prior
            log_p = F.log_softmax(outs_a[idx] / self.temperature, dim=-1)
            kl = F.kl_div(log_p, final_embeddings, reduction="batchmean") * self.temperature
            loss = loss + self.kl_weight * kl
        return loss


def pairs(n=24):
    topic = torch.randint(0, 12, (n, 1))
    a = 1 + topic * 5 + torch.randint(0, 5, (n, 9))
    b = 1 + topic * 5 + torch.randint(0, 5, (n, 9))
    a[:, 6:] *= (torch.rand(n, 1) < 0.5)
    return a, b


model = Encoder()
objective = AdaptiveLayerLoss(model, InfoNCE())
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
for step in range(80):
    loss = objective(*pairs())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 20 == 0:
        print(f"step {step} loss {loss.item():.4f}")
print(f"final loss {loss.item():.4f}")
