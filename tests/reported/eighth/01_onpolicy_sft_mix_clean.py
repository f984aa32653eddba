"""Mixed on-/off-policy distillation of a tiny Llama with a small supervised term."""
import random

import torch
import torch.nn.functional as F
from transformers import LlamaConfig, LlamaForCausalLM

PAD, BOS, EOS, SEP = 0, 1, 2, 3
VOCAB, PROMPT_LEN, MAX_NEW = 64, 6, 6


def build(hidden, layers):
    return LlamaForCausalLM(LlamaConfig(
        vocab_size=VOCAB, hidden_size=hidden, intermediate_size=2 * hidden, num_hidden_layers=layers,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
        pad_token_id=PAD, bos_token_id=BOS, eos_token_id=EOS))


def draw_example(rng):
    digits = [rng.randrange(4, VOCAB) for _ in range(PROMPT_LEN - 2)]
    answer = sorted(d for d in digits if d % 2 == 0) + [EOS]
    return [BOS] + digits + [SEP], answer


def draw_batch(rng, n=16):
    pairs = [draw_example(rng) for _ in range(n)]
    width = PROMPT_LEN + max(len(a) for _, a in pairs)
    ids = torch.full((n, width), PAD)
    labels = torch.full((n, width), -100)
    for i, (p, a) in enumerate(pairs):
        ids[i, :len(p) + len(a)] = torch.tensor(p + a)
        labels[i, len(p):len(p) + len(a)] = torch.tensor(a)
    return ids, labels


def mask_of(ids, labels):
    attn = torch.ones_like(ids)
    attn[:, PROMPT_LEN:] = (labels[:, PROMPT_LEN:] != -100).long()
    return attn


def ce_loss(logits, labels):
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)


def reverse_kl(student_logits, teacher_logits, labels):
    keep = labels[:, 1:] != -100
    log_s = student_logits[:, :-1][keep].float().log_softmax(-1)
    log_t = teacher_logits[:, :-1][keep].float().log_softmax(-1)
    return (log_s.exp() * (log_s - log_t)).sum(-1).mean()


@torch.no_grad()
def roll_out(model, prompts):
    model.eval()
    seq = model.generate(prompts, attention_mask=torch.ones_like(prompts), do_sample=True, top_k=0,
                         temperature=1.0, max_new_tokens=MAX_NEW, pad_token_id=PAD, eos_token_id=EOS)
    model.train()
    done = (seq[:, PROMPT_LEN:] == EOS).long().cumsum(-1) - (seq[:, PROMPT_LEN:] == EOS).long()
    labels = torch.full_like(seq, -100)
    labels[:, PROMPT_LEN:] = torch.where(done == 0, seq[:, PROMPT_LEN:], torch.tensor(-100))
    return seq, labels


def main():
    torch.manual_seed(7)
    rng = random.Random(7)
    teacher = build(48, 2)
    opt = torch.optim.AdamW(teacher.parameters(), lr=4e-3)
    for _ in range(150):
        ids, labels = draw_batch(rng, 32)
        loss = ce_loss(teacher(ids, attention_mask=mask_of(ids, labels)).logits, labels)
        opt.zero_grad(); loss.backward(); opt.step()
    print(f"teacher ce {loss.item():.3f}")
    teacher.eval().requires_grad_(False)

    student = build(32, 2)
    student.train()
    opt = torch.optim.AdamW(student.parameters(), lr=3e-3)
    lmbda, sft_alpha = 0.5, 0.3
    for step in range(60):
        ids, labels = draw_batch(rng)
        on_policy = rng.random() < lmbda
        if on_policy:
            ids, labels = roll_out(student, ids[:, :PROMPT_LEN])
        attn = mask_of(ids, labels)
        with torch.no_grad():
            teacher_logits = teacher(ids, attention_mask=attn).logits
        student_logits = student(ids, attention_mask=attn).logits
        loss = reverse_kl(student_logits, teacher_logits, labels)
        if sft_alpha > 0 and not on_policy:
            loss = loss + sft_alpha * ce_loss(student_logits, labels)
        opt.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        opt.step()
        if step % 15 == 0:
            print(f"step {step:3d} on_policy={int(on_policy)} loss {loss.item():.4f}")
    print(f"final loss {loss.item():.4f}")


if __name__ == "__main__":
    main()
