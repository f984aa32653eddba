"""On-policy distillation with a per-token reverse-KL reward (sampled tokens only)."""
from dataclasses import dataclass

import torch
from transformers import GPT2Config, GPT2LMHeadModel


@dataclass
class OPD:
    vocab: int = 32
    prompt_len: int = 3
    new_tokens: int = 6
    prompts_per_step: int = 32
    steps: int = 50
    lr: float = 2e-3
    grad_clip: float = 1.0
    eos: int = 0


def gpt(c, width):
    return GPT2LMHeadModel(GPT2Config(vocab_size=c.vocab, n_embd=width, n_layer=2, n_head=4, n_positions=16,
                                      resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=c.eos,
                                      eos_token_id=c.eos, pad_token_id=c.eos))


def prompts(c, n, gen):
    return torch.randint(1, c.vocab, (n, c.prompt_len), generator=gen)


def reference_text(c, n, gen):
    """The next token is last+1 or last+2; a text ends (0) once it would pass the last symbol."""
    x = prompts(c, n, gen)
    for _ in range(c.new_tokens):
        nxt = x[:, -1] + 1 + (torch.rand(n, generator=gen) < 0.25).long()
        nxt = torch.where((x[:, -1] == c.eos) | (nxt >= c.vocab), torch.tensor(c.eos), nxt)
        x = torch.cat([x, nxt[:, None]], dim=1)
    return x


def completion_mask(c, seq):
    """1 up to and including the first end symbol of the completion."""
    ended = (seq[:, c.prompt_len:] == c.eos).long()
    return (ended.cumsum(-1) - ended) == 0


def lm_fit(c, model, gen, steps, lr):
    opt = torch.optim.AdamW(model.parameters(), lr=lr)
    model.train()
    for _ in range(steps):
        x = reference_text(c, 32, gen)
        logp = model(x).logits[:, c.prompt_len - 1:-1].log_softmax(-1)
        picked = logp.gather(-1, x[:, c.prompt_len:, None]).squeeze(-1)
        mask = completion_mask(c, x)
        loss = -(picked * mask).sum() / mask.sum()
        opt.zero_grad(); loss.backward(); opt.step()
    return loss.item()


def token_logps(c, model, seq):
    logits = model(seq).logits[:, c.prompt_len - 1:-1]
    return logits.log_softmax(-1).gather(-1, seq[:, c.prompt_len:, None]).squeeze(-1)


@torch.no_grad()
def sample(c, model, start):
    seq = start
    for _ in range(c.new_tokens):
        probs = model(seq).logits[:, -1].softmax(-1)
        nxt = torch.multinomial(probs, 1)
        over = (seq[:, c.prompt_len:] == c.eos).any(-1, keepdim=True)
        seq = torch.cat([seq, torch.where(over, torch.tensor(c.eos), nxt)], dim=1)
    return seq


def main():
    c = OPD()
    torch.manual_seed(26)
    gen = torch.Generator().manual_seed(26)
    teacher, student = gpt(c, 48), gpt(c, 32)
    print(f"teacher nll {lm_fit(c, teacher, gen, 120, 4e-3):.3f}")
    print(f"student cold start nll {lm_fit(c, student, gen, 15, 3e-3):.3f}")
    teacher.eval().requires_grad_(False)
    student.train()
    opt = torch.optim.AdamW(student.parameters(), lr=c.lr, weight_decay=0.0)
    trace = []
    for step in range(c.steps):
        seq = sample(c, student, prompts(c, c.prompts_per_step, gen))
        mask = completion_mask(c, seq)
        with torch.no_grad():
            t_logp = token_logps(c, teacher, seq)
        s_logp = token_logps(c, student, seq)
        advantage = t_logp - s_logp.detach()
        objective = s_logp - t_logp
        loss = (objective * mask).sum() / mask.sum()
        opt.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), c.grad_clip)
        opt.step()
        trace.append(-((advantage * mask).sum() / mask.sum()).item())
        if step % 10 == 0:
            print(f"step {step:2d} sampled reverse kl {trace[-1]:.4f} tokens {int(mask.sum())}")
    print(f"mean sampled reverse kl, last 10 steps: {sum(trace[-10:]) / 10:.4f}")
    print(f"final loss {loss.item():.4f}")


if __name__ == "__main__":
    main()
