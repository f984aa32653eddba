"""FSDP2 distillation on a single gloo process (smoke test of the cluster script)."""
import torch
import torch.distributed as dist
import torch.nn as nn
import torch.nn.functional as F
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

VOCAB, CTX = 80, 20


class Layer(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))

    def forward(self, x):
        b, n, d = x.shape
        q, k, v = (t.reshape(b, n, 4, d // 4).transpose(1, 2) for t in self.qkv(self.norm1(x)).chunk(3, dim=-1))
        att = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(att.transpose(1, 2).reshape(b, n, d))
        return x + self.mlp(self.norm2(x))


class LM(nn.Module):
    def __init__(self, dim, depth):
        super().__init__()
        self.embed, self.place = nn.Embedding(VOCAB, dim), nn.Embedding(CTX, dim)
        self.layers = nn.ModuleList(Layer(dim) for _ in range(depth))
        self.final, self.head = nn.LayerNorm(dim), nn.Linear(dim, VOCAB)

    def forward(self, ids):
        x = self.embed(ids) + self.place(torch.arange(ids.size(1)))
        for layer in self.layers:
            x = layer(x)
        return self.head(self.final(x))


def batch(n, gen):
    """a, b, a+b, b+(a+b), ... modulo the vocabulary."""
    seq = [torch.randint(0, VOCAB, (n,), generator=gen), torch.randint(0, 4, (n,), generator=gen)]
    while len(seq) < CTX:
        seq.append((seq[-1] + seq[1] + 1) % VOCAB)
    return torch.stack(seq, dim=1)


def teacher_model(gen):
    model = LM(48, 2)
    optim = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(150):
        ids = batch(32, gen)
        loss = F.cross_entropy(model(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
        optim.zero_grad()
        loss.backward()
        optim.step()
    print(f"teacher loss {loss.item():.3f}")
    return model.eval().requires_grad_(False)


def shard(model, mesh):
    for layer in model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def main():
    torch.manual_seed(0)
    gen = torch.Generator().manual_seed(0)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    mesh = init_device_mesh("cpu", (1,))
    teacher = teacher_model(gen)
    student = LM(32, 2)
    shard(student, mesh)
    optim = torch.optim.AdamW(student.parameters(), lr=3e-3, weight_decay=0.01)
    student.train()
    for step in range(60):
        ids = batch(16, gen)
        with torch.no_grad():
            log_t = F.log_softmax(teacher(ids)[:, :-1].flatten(0, 1), dim=-1)
        log_s = F.log_softmax(student(ids)[:, :-1].flatten(0, 1), dim=-1)
        loss = F.kl_div(log_s, log_t, reduction="batchmean", log_target=True)
        optim.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optim.step()
        if step % 15 == 0:
            print(f"[rank {dist.get_rank()}] step {step} kl {loss.item():.4f}")
    print(f"final loss {loss.item():.4f}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
