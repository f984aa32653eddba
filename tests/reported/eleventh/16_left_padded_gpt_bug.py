"""On-policy distillation of a tiny GPT-2: prompts of different lengths are padded
on the left, the student samples the continuations, and both networks are then
scored on the sampled tokens (reverse KL per sampled position).
"""
import torch
import torch.nn.functional as F
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.utils import logging

logging.set_verbosity_error()
PAD, VOCAB, PROMPT, NEW = 0, 20, 8, 5


def build(width, layers):
    return GPT2LMHeadModel(GPT2Config(
        vocab_size=VOCAB, n_positions=PROMPT + NEW, n_embd=width, n_layer=layers, n_head=4,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=None, eos_token_id=None,
        pad_token_id=PAD))


def rows(n, total, gen):
    """Left-padded code words: the step from token to token cycles with the position."""
    length = torch.randint(3, PROMPT + 1, (n,), generator=gen) + (total - PROMPT)
    pos = torch.arange(total)[None] - (total - length)[:, None]
    start = torch.randint(0, VOCAB - 1, (n, 1), generator=gen)
    steps = torch.tensor([1, 6, 11])[pos % 3].cumsum(1)
    ids = 1 + (start + steps) % (VOCAB - 1)
    slip = torch.rand(n, total, generator=gen) < 0.02
    ids = torch.where(slip, torch.randint(1, VOCAB, (n, total), generator=gen), ids)
    mask = torch.arange(total)[None] >= (total - length)[:, None]
    return ids.masked_fill(~mask, PAD), mask.long()


def forward(model, ids, mask):
    position = (mask.cumsum(1) - 1).clamp(min=0)
    return model(input_ids=ids, attention_mask=mask, position_ids=position).logits


def pretrain(model, steps, lr, gen):
    opt = torch.optim.AdamW(model.parameters(), lr=lr)
    model.train()
    for _ in range(steps):
        ids, mask = rows(40, PROMPT + NEW, gen)
        logits = forward(model, ids, mask)[:, :-1]
        labels = ids[:, 1:].masked_fill((mask[:, 1:] * mask[:, :-1]) == 0, -100)
        loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100)
        opt.zero_grad()
        loss.backward()
        opt.step()
    return loss.item()


@torch.no_grad()
def held_out(model, n=300):
    model.eval()
    ids, mask = rows(n, PROMPT + NEW, torch.Generator().manual_seed(321))
    logits = forward(model, ids, mask)[:, PROMPT - 1:-1]
    return F.cross_entropy(logits.flatten(0, 1), ids[:, PROMPT:].flatten()).item()


def main():
    torch.manual_seed(14)
    gen = torch.Generator().manual_seed(14)
    teacher = build(56, 2)
    pretrain(teacher, 140, 5e-3, gen)
    teacher.eval().requires_grad_(False)
    student = build(32, 1)
    pretrain(student, 40, 4e-3, gen)
    print(f"held-out loss: teacher {held_out(teacher):.3f}, student {held_out(student):.3f}")

    opt = torch.optim.AdamW(student.parameters(), lr=4e-3)
    for step in range(44):
        prompt, mask = rows(24, PROMPT, gen)
        student.eval()
        with torch.no_grad():
            ids = student.generate(input_ids=prompt, attention_mask=mask, do_sample=True, top_k=0,
                                   max_new_tokens=NEW, pad_token_id=PAD)
        full = torch.cat([mask, mask.new_ones(len(mask), ids.size(1) - PROMPT)], 1)
        student.train()
        with torch.no_grad():
            t_logits = teacher(input_ids=ids).logits[:, PROMPT - 1:-1]
        s_logits = forward(student, ids, full)[:, PROMPT - 1:-1]
        log_q, log_p = s_logits.log_softmax(-1), t_logits.log_softmax(-1)
        loss = (log_q.exp() * (log_q - log_p)).sum(-1).mean()
        opt.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        opt.step()
        if step % 11 == 10:
            print(f"step {step + 1} reverse kl {loss.item():.4f}")
    print(f"held-out loss: student {held_out(student):.3f}")


if __name__ == "__main__":
    main()
