"""Two-tower retrieval: the student learns the teacher's similarity distribution
of each query over the documents of the batch and over a queue of earlier ones.
"""
import torch
import torch.nn.functional as F
from torch import nn

TOPICS, QDIM, DDIM, BATCH, QUEUE = 200, 30, 40, 32, 96


class World:
    def __init__(self, seed):
        g = torch.Generator().manual_seed(seed)
        self.topic = torch.randn(TOPICS, 12, generator=g)
        self.to_q = torch.randn(12, QDIM, generator=g) / 12 ** 0.5
        self.to_d = torch.randn(12, DDIM, generator=g) / 12 ** 0.5

    def pairs(self, n, g):
        z = self.topic[torch.randint(0, TOPICS, (n,), generator=g)]
        z = z + 0.5 * torch.randn(n, 12, generator=g)
        q = z @ self.to_q + 0.3 * torch.randn(n, QDIM, generator=g)
        d = torch.tanh(z @ self.to_d) + 0.1 * torch.randn(n, DDIM, generator=g)
        return q, d


class Towers(nn.Module):
    def __init__(self, width, dim):
        super().__init__()
        self.query = nn.Sequential(nn.Linear(QDIM, width), nn.GELU(), nn.Linear(width, dim))
        self.doc = nn.Sequential(nn.Linear(DDIM, width), nn.GELU(), nn.Linear(width, dim))

    def forward(self, q, d):
        return F.normalize(self.query(q), dim=-1), F.normalize(self.doc(d), dim=-1)


class DocQueue:
    """Ring buffer of document embeddings (one per network)."""

    def __init__(self, dim):
        self.rows = F.normalize(torch.randn(QUEUE, dim), dim=-1)
        self.ptr = 0

    def push(self, docs):
        self.rows[self.ptr: self.ptr + len(docs)] = docs.detach()
        self.ptr = (self.ptr + len(docs)) % QUEUE

    def columns(self, docs):
        return torch.cat([docs, self.rows.clone()], 0)


def info_nce(q, d, temp=0.07):
    sim = q @ d.t() / temp
    target = torch.arange(len(q))
    return 0.5 * (F.cross_entropy(sim, target) + F.cross_entropy(sim.t(), target))


@torch.no_grad()
def recall_at_1(model, q, d):
    model.eval()
    eq, ed = model(q, d)
    model.train()
    return ((eq @ ed.t()).argmax(1) == torch.arange(len(q))).float().mean().item()


def main():
    torch.manual_seed(5)
    world, gen = World(1), torch.Generator().manual_seed(5)
    test_q, test_d = world.pairs(300, torch.Generator().manual_seed(50))
    teacher = Towers(160, 48)
    opt = torch.optim.Adam(teacher.parameters(), lr=2e-3)
    for _ in range(250):
        loss = info_nce(*teacher(*world.pairs(64, gen)))
        opt.zero_grad()
        loss.backward()
        opt.step()
    teacher.eval().requires_grad_(False)
    print(f"teacher recall@1 {recall_at_1(teacher, test_q, test_d):.3f}")
    teacher.eval()

    student = Towers(48, 16)
    t_queue, s_queue = DocQueue(48), DocQueue(16)
    fill = QUEUE // BATCH
    for _ in range(fill):
        q, d = world.pairs(BATCH, gen)
        with torch.no_grad():
            t_queue.push(teacher(q, d)[1])
            s_queue.push(student(q, d)[1])
    opt = torch.optim.Adam(student.parameters(), lr=4e-3)
    t_temp, s_temp = 0.07, 0.07
    for step in range(150):
        q, d = world.pairs(BATCH, gen)
        with torch.no_grad():
            tq, td = teacher(q, d)
            t_logits = tq @ t_queue.columns(td).t() / t_temp
            t_queue.push(td)
        sq, sd = student(q, d)
        s_logits = sq @ s_queue.columns(sd).t() / s_temp
        s_queue.push(sd)
        kd = F.kl_div(s_logits.log_softmax(1), t_logits.log_softmax(1), reduction="batchmean", log_target=True)
        loss = kd + 0.1 * info_nce(sq, sd)
        opt.zero_grad()
        loss.backward()
        opt.step()
        if step % 30 == 29:
            print(f"step {step + 1} kd {kd.item():.4f} recall@1 {recall_at_1(student, test_q, test_d):.3f}")


if __name__ == "__main__":
    main()
