"""Logit distillation between two checkpoints of one family whose embedding tables are padded differently."""
import argparse
import tempfile

import torch
import torch.nn.functional as F
from torch.optim.lr_scheduler import LambdaLR
from transformers import GPT2Config, GPT2LMHeadModel

parser = argparse.ArgumentParser()
parser.add_argument("--temperature", type=float, default=2.0)
parser.add_argument("--alpha", type=float, default=0.5)
parser.add_argument("--steps", type=int, default=64)
parser.add_argument("--batch-size", type=int, default=16)
parser.add_argument("--lr", type=float, default=3e-3)
parser.add_argument("--tokenizer-size", type=int, default=120)
parser.add_argument("--teacher-vocab", type=int, default=192)
args = parser.parse_args()
torch.manual_seed(24)


def gpt2(vocab, width):
    return GPT2LMHeadModel(GPT2Config(vocab_size=vocab, n_embd=width, n_layer=2, n_head=4, n_positions=32,
                                      resid_pdrop=0.05, embd_pdrop=0.0, attn_pdrop=0.0))


class Stories:
    """Two interleaved counters; every story has its own two step sizes. 0 pads on the right."""

    def __init__(self, seed):
        self.gen = torch.Generator().manual_seed(seed)

    def draw(self, n, width=20):
        n_real = args.tokenizer_size - 1
        start = torch.randint(0, n_real, (n, 2), generator=self.gen)
        step = torch.randint(1, 4, (n, 2), generator=self.gen)
        grid = (start[:, None] + step[:, None] * torch.arange(width // 2)[None, :, None]) % n_real + 1
        length = torch.randint(10, width + 1, (n, 1), generator=self.gen)
        attn = (torch.arange(width) < length).long()
        return grid.reshape(n, width) * attn, attn


def token_mask(attn):
    return attn[:, 1:].bool()


def match_vocab(student_logits, teacher_logits):
    extra = teacher_logits.size(-1) - student_logits.size(-1)
    if extra > 0:
        student_logits = F.pad(student_logits, (0, extra), value=0.0)
    return student_logits, teacher_logits


def distillation_loss(student_logits, teacher_logits, ids, attn):
    keep = token_mask(attn)
    hard = F.cross_entropy(student_logits[:, :-1][keep], ids[:, 1:][keep])
    student_logits, teacher_logits = match_vocab(student_logits, teacher_logits)
    tau = args.temperature
    log_s = F.log_softmax(student_logits[:, :-1][keep] / tau, dim=-1)
    p_t = F.softmax(teacher_logits[:, :-1][keep] / tau, dim=-1)
    soft = F.kl_div(log_s, p_t, reduction="batchmean") * tau ** 2
    return args.alpha * soft + (1 - args.alpha) * hard


def train_teacher(stories):
    model = gpt2(args.teacher_vocab, 64)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    model.train()
    for _ in range(90):
        ids, attn = stories.draw(24)
        out = model(input_ids=ids, attention_mask=attn, labels=ids.masked_fill(attn == 0, -100))
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
    print(f"teacher loss {out.loss.item():.3f}")
    model.eval()
    model.requires_grad_(False)
    return model


stories = Stories(1)
teacher = train_teacher(stories)
student = gpt2(args.tokenizer_size, 32)
optimizer = torch.optim.AdamW(student.parameters(), lr=args.lr, weight_decay=0.01)
scheduler = LambdaLR(optimizer, lambda s: min((s + 1) / 6, (args.steps - s) / (args.steps - 6)))
student.train()
for step in range(args.steps):
    ids, attn = stories.draw(args.batch_size)
    with torch.no_grad():
        teacher_logits = teacher(input_ids=ids, attention_mask=attn).logits
    student_logits = student(input_ids=ids, attention_mask=attn).logits
    loss = distillation_loss(student_logits, teacher_logits, ids, attn)
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
    optimizer.step()
    scheduler.step()
    if step % 16 == 0:
        print(f"step {step} loss {loss.item():.4f}")

with tempfile.TemporaryDirectory() as out_dir:
    student.save_pretrained(out_dir)
print(f"final loss {loss.item():.4f}")
