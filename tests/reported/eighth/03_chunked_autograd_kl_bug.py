"""Memory-lean distillation: KL computed straight from hidden states, chunk by chunk."""
import torch
import torch.nn as nn
from transformers import LlamaConfig, LlamaForCausalLM

torch.manual_seed(3)
V, IGNORE = 101, -100


class LinearKL(torch.autograd.Function):
    """sum KL(teacher || student) / n_valid, gradients for hidden states and head built in forward."""

    @staticmethod
    def forward(ctx, h_s, w_s, h_t, w_t, labels, tau, chunk):
        n_valid = (labels != IGNORE).sum().clamp(min=1)
        total = h_s.new_zeros(())
        g_h, g_w = torch.zeros_like(h_s), torch.zeros_like(w_s)
        for start in range(0, h_s.size(0), chunk):
            stop = min(start + chunk, h_s.size(0))
            lab = labels[:stop - start]
            keep = (lab != IGNORE).unsqueeze(-1).to(h_s.dtype)
            log_s = torch.log_softmax(h_s[start:stop] @ w_s.t() / tau, dim=-1)
            log_t = torch.log_softmax(h_t[start:stop] @ w_t.t() / tau, dim=-1)
            kl = (log_t.exp() * (log_t - log_s)).sum(-1, keepdim=True)
            total += (kl * keep).sum() * tau ** 2 / n_valid
            g_logits = (log_s.exp() - log_t.exp()) * keep * tau / n_valid
            g_h[start:stop] = g_logits @ w_s
            g_w += g_logits.t() @ h_s[start:stop]
        ctx.save_for_backward(g_h, g_w)
        return total

    @staticmethod
    def backward(ctx, grad):
        g_h, g_w = ctx.saved_tensors
        return grad * g_h, grad * g_w, None, None, None, None, None


def tiny_llama(width, depth):
    return LlamaForCausalLM(LlamaConfig(vocab_size=V, hidden_size=width, intermediate_size=2 * width,
                                        num_hidden_layers=depth, num_attention_heads=4, num_key_value_heads=4,
                                        max_position_embeddings=64, tie_word_embeddings=False, pad_token_id=0))


def batches(n_steps, bs=32, seed=0):
    g = torch.Generator().manual_seed(seed)
    for _ in range(n_steps):
        a_len, q_len = 10, 6
        base = torch.randint(2, V // 2, (bs, q_len), generator=g)
        answer = (base.repeat(1, 2)[:, :a_len] * 2 + 1) % V
        n_ans = torch.randint(3, a_len + 1, (bs, 1), generator=g)
        inside = torch.arange(a_len) < n_ans
        answer = torch.where(inside, answer.clamp(min=2), torch.zeros_like(answer))
        ids = torch.cat([torch.ones(bs, 1, dtype=torch.long), base, answer], dim=1)
        attn = torch.cat([torch.ones(bs, 1 + q_len, dtype=torch.long), inside.long()], dim=1)
        labels = torch.cat([torch.full((bs, 1 + q_len), IGNORE), answer.masked_fill(~inside, IGNORE)], dim=1)
        yield ids, attn, labels


def pretrain_teacher(model, steps):
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for ids, attn, labels in batches(steps, bs=32, seed=100):
        loss = model(input_ids=ids, attention_mask=attn, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print("teacher nll", round(loss.item(), 4))
    for p in model.parameters():
        p.requires_grad = False
    return model.eval()


teacher = pretrain_teacher(tiny_llama(64, 2), 150)
student = tiny_llama(32, 2).train()
optimizer = torch.optim.AdamW(student.parameters(), lr=1e-2, betas=(0.9, 0.98))
schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=80)

for step, (ids, attn, labels) in enumerate(batches(80, seed=5)):
    with torch.no_grad():
        h_t = teacher.model(input_ids=ids, attention_mask=attn).last_hidden_state[:, :-1]
    h_s = student.model(input_ids=ids, attention_mask=attn).last_hidden_state[:, :-1]
    target = labels[:, 1:].reshape(-1)
    loss = LinearKL.apply(h_s.reshape(-1, h_s.size(-1)), student.lm_head.weight,
                          h_t.reshape(-1, h_t.size(-1)), teacher.lm_head.weight, target, 1.5, 128)
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(student.parameters(), 1.0)
    optimizer.step()
    schedule.step()
    if step % 20 == 0:
        print(f"{step:4d} kl={loss.item():.4f} lr={schedule.get_last_lr()[0]:.2e}")

print(f"final loss {loss.item():.4f}")
