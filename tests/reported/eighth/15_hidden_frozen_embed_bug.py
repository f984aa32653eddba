"""Layer-reduced student: inherits the teacher's (frozen) embeddings, learns from hidden states and logits."""
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

torch.manual_seed(6)
VOCAB, WIDTH, SEQ, PAD = 140, 48, 20, 0


class Decoder(nn.Module):
    def __init__(self, depth, save_memory=False):
        super().__init__()
        self.embed, self.place = nn.Embedding(VOCAB, WIDTH), nn.Embedding(SEQ, WIDTH)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(WIDTH, 4, 96, dropout=0.0, batch_first=True, norm_first=True) for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, VOCAB, bias=False)
        self.save_memory = save_memory

    def forward(self, ids):
        mask = nn.Transformer.generate_square_subsequent_mask(ids.size(1))
        x = self.embed(ids) + self.place(torch.arange(ids.size(1)))
        for block in self.blocks:
            if self.save_memory and self.training:
                x = checkpoint(block, x, mask, use_reentrant=True)
            else:
                x = block(x, mask)
        x = self.norm(x)
        return self.head(x), x


def bracket_language(n, gen):
    """Random tokens followed by their mirror image, variable length, right padding."""
    half = torch.randint(4, SEQ // 2 + 1, (n,), generator=gen)
    ids = torch.full((n, SEQ), PAD)
    for i, h in enumerate(half.tolist()):
        left = torch.randint(2, VOCAB // 2, (h,), generator=gen)
        ids[i, :h] = left
        ids[i, h:2 * h] = left.flip(0) + VOCAB // 2 - 2
    return ids, (ids != PAD).long()


def lm_loss(logits, ids):
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), ignore_index=PAD)


def pretrain(gen):
    teacher = Decoder(4)
    opt = torch.optim.AdamW(teacher.parameters(), lr=3e-3)
    for _ in range(100):
        ids, attn = bracket_language(24, gen)
        loss = lm_loss(teacher(ids)[0], ids)
        opt.zero_grad()
        loss.backward()
        opt.step()
    print(f"teacher lm loss {loss.item():.3f}")
    return teacher.eval().requires_grad_(False)


def student_from(teacher):
    student = Decoder(2, save_memory=True)
    for name in ("embed", "place"):
        getattr(student, name).load_state_dict(getattr(teacher, name).state_dict())
        getattr(student, name).requires_grad_(False)
    return student.train()


def masked_mse(a, b, mask):
    return ((a - b).pow(2).mean(-1) * mask).sum() / mask.sum()


gen = torch.Generator().manual_seed(6)
teacher = pretrain(gen)
student = student_from(teacher)
projector = nn.Linear(WIDTH, WIDTH, bias=False)
params = [p for p in student.parameters() if p.requires_grad] + list(projector.parameters())
print(f"trainable tensors: {len(params)}")
optimizer = torch.optim.AdamW(params, lr=3e-3, weight_decay=0.01)

history = []
for step in range(60):
    ids, attn = bracket_language(16, gen)
    with torch.no_grad():
        t_logits, t_hidden = teacher(ids)
    s_logits, s_hidden = student(ids)
    hidden = masked_mse(projector(s_hidden), t_hidden, attn)
    keep = ids[:, 1:] != PAD
    log_s = F.log_softmax(s_logits[:, :-1][keep], dim=-1)
    log_t = F.log_softmax(t_logits[:, :-1][keep], dim=-1)
    kd = F.kl_div(log_s, log_t, log_target=True, reduction="batchmean")
    loss = kd + 0.5 * hidden
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(params, 1.0)
    optimizer.step()
    history.append(loss.item())
    if step % 12 == 0:
        print(f"step {step:2d} kd {kd.item():.4f} hidden {hidden.item():.4f}")

with torch.no_grad():
    student.eval()
    ids, attn = bracket_language(64, gen)
    print(f"held-out lm loss {lm_loss(student(ids)[0], ids).item():.4f}")
print(f"final loss {sum(history[-5:]) / 5:.4f}")
