"""Bi-encoder distillation with in-batch candidates and nested embedding sizes."""
import math

import torch
from torch import Tensor, nn

V, L, TOPICS, DIMS = 120, 10, 24, (8, 16, 32)
gen = torch.Generator().manual_seed(8)
topic_words = torch.stack([torch.randperm(V, generator=gen)[:12] for _ in range(TOPICS)])


def words(topic: Tensor, noise: float) -> Tensor:
    pick = torch.randint(0, 12, (len(topic), L), generator=gen)
    toks = topic_words[topic].gather(1, pick)
    rand = torch.randint(0, V, toks.shape, generator=gen)
    swap = torch.rand(toks.shape, generator=gen) < noise
    return torch.where(swap, rand, toks)


def sample(n: int):
    topic = torch.randint(0, TOPICS, (n,), generator=gen)
    return words(topic, 0.45), words(topic, 0.1), topic


class Encoder(nn.Module):
    def __init__(self, width: int, out: int):
        super().__init__()
        self.q_emb = nn.EmbeddingBag(V, width, mode="mean")
        self.d_emb = nn.EmbeddingBag(V, width, mode="mean")
        self.proj = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, out))

    def encode_query(self, x):
        return self.proj(self.q_emb(x))

    def encode_doc(self, x):
        return self.proj(self.d_emb(x))


def unit(z: Tensor) -> Tensor:
    return z / z.norm(dim=-1, keepdim=True).clamp_min(1e-6)


def scores(q: Tensor, d: Tensor, temp: float) -> Tensor:
    return torch.einsum("qe,de->qd", unit(q), unit(d)) / temp


def topic_loss(s: Tensor, topic: Tensor) -> Tensor:
    pos = (topic[:, None] == topic[None]).float()
    return -(pos / pos.sum(1, keepdim=True) * s.log_softmax(1)).sum(1).mean()


class NestedKD(nn.Module):
    def __init__(self, dims=DIMS, temp=0.1):
        super().__init__()
        self.dims, self.temp = dims, temp

    def forward(self, sq, sd, tq, td):
        with torch.no_grad():
            target = torch.einsum("qe,de->qd", unit(tq), unit(td)).div(self.temp).softmax(-1)
        total = 0.0
        for k in self.dims:
            logq = scores(sq[:, :k], sd[:, :k], self.temp).log_softmax(-1)
            total = total + torch.einsum("qd,qd->q", target, target.clamp_min(1e-9).log() - logq).mean()
        return total / len(self.dims)


@torch.no_grad()
def recall(enc, dim=None):
    state = gen.get_state()
    gen.manual_seed(4242)
    q, d, topic = sample(200)
    gen.set_state(state)
    s = scores(enc.encode_query(q)[:, :dim], enc.encode_doc(d)[:, :dim], 1.0)
    return (topic[s.argmax(1)] == topic).float().mean().item()


def main():
    torch.manual_seed(0)
    teacher = Encoder(64, 64)
    opt = torch.optim.AdamW(teacher.parameters(), lr=2e-2)
    for _ in range(120):
        q, d, topic = sample(96)
        loss = topic_loss(scores(teacher.encode_query(q), teacher.encode_doc(d), 0.1), topic)
        opt.zero_grad()
        loss.backward()
        opt.step()
    teacher.requires_grad_(False)
    print(f"teacher recall@1 {recall(teacher):.3f}")

    torch.manual_seed(1)
    student = Encoder(24, max(DIMS))
    crit = NestedKD()
    opt = torch.optim.AdamW(student.parameters(), lr=2e-2)
    steps = 100
    sched = torch.optim.lr_scheduler.LambdaLR(opt, lambda i: 0.5 * (1 + math.cos(math.pi * i / steps)))
    for i in range(steps):
        q, d, _ = sample(64)
        loss = crit(student.encode_query(q), student.encode_doc(d), teacher.encode_query(q), teacher.encode_doc(d))
        opt.zero_grad()
        loss.backward()
        opt.step()
        sched.step()
        if i % 25 == 24:
            print(f"[{i + 1}] nested kd {loss.item():.4f}")
    print("student recall@1", {k: round(recall(student, k), 3) for k in DIMS})


if __name__ == "__main__":
    main()
