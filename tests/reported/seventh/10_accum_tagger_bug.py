"""Token-tagging distillation trainer with HF-like gradient accumulation."""
import torch
import torch.nn as nn
import torch.nn.functional as F

torch.manual_seed(10)
torch.set_num_threads(1)
GEN = torch.Generator().manual_seed(10)
VOCAB, TAGS, LEN = 60, 9, 20
LEXICON = torch.randint(0, TAGS, (VOCAB, 3), generator=GEN)


def make_batch(n):
    ids = torch.randint(1, VOCAB, (n, LEN), generator=GEN)
    lens = torch.randint(5, LEN + 1, (n, 1), generator=GEN)
    mask = torch.arange(LEN)[None] < lens
    ctx = torch.cat([torch.zeros(n, 1, dtype=torch.long), ids[:, :-1]], 1) % 3
    tags = LEXICON[ids].gather(2, ctx[..., None])[..., 0]
    return {"input_ids": ids * mask, "mask": mask, "tags": tags.masked_fill(~mask, -100)}


class Tagger(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.emb = nn.Embedding(VOCAB, d)
        self.conv = nn.Conv1d(d, d, 3, padding=1)
        self.out = nn.Linear(d, TAGS)

    def forward(self, input_ids):
        h = self.emb(input_ids).transpose(1, 2)
        return self.out(F.relu(self.conv(h)).transpose(1, 2))


class DistillTrainer:
    def __init__(self, student, teacher, data, accum=4, lr=0.4, T=2.0):
        self.student, self.teacher, self.data = student, teacher, data
        self.accum, self.T = accum, T
        self.opt = torch.optim.SGD(student.parameters(), lr=lr, momentum=0.9)

    def compute_loss(self, inputs, num_items_in_batch):
        keep = inputs["mask"]
        s = self.student(inputs["input_ids"])[keep] / self.T
        with torch.no_grad():
            t = self.teacher(inputs["input_ids"])[keep] / self.T
        kd = F.kl_div(F.log_softmax(s, -1), F.softmax(t, -1), reduction="sum") * self.T ** 2
        return kd / keep.sum()

    def train(self, steps):
        self.teacher.eval()
        for step in range(1, steps + 1):
            self.student.train()
            micro = [self.data[i] for i in torch.randint(0, len(self.data), (self.accum,), generator=GEN).tolist()]
            num_items = sum(m["mask"].sum() for m in micro)
            self.opt.zero_grad()
            running = 0.0
            for m in micro:
                loss = self.compute_loss(m, num_items_in_batch=num_items)
                loss.backward()
                running += loss.item()
            norm = torch.stack([p.grad.norm() for p in self.student.parameters()]).norm().item()
            self.opt.step()
            if step % 40 == 0:
                print(f"step {step} loss {running:.4f} grad norm {norm:.3f}")


@torch.no_grad()
def tag_accuracy(net, batch):
    pred = net.eval()(batch["input_ids"]).argmax(-1)
    return (pred == batch["tags"])[batch["mask"]].float().mean().item()


train, val = [make_batch(16) for _ in range(60)], make_batch(400)
teacher = Tagger(48)
opt = torch.optim.Adam(teacher.parameters(), lr=5e-3)
for step in range(300):
    b = train[step % len(train)]
    opt.zero_grad()
    F.cross_entropy(teacher(b["input_ids"]).flatten(0, 1), b["tags"].flatten(), ignore_index=-100).backward()
    opt.step()
teacher.requires_grad_(False)
print(f"teacher acc {tag_accuracy(teacher, val):.3f}")
student = Tagger(16)
DistillTrainer(student, teacher, train).train(240)
print(f"student acc {tag_accuracy(student, val):.3f}")
