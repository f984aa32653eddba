"""Context distillation: bake a fixed system context into LoRA weights. Teacher = same base, adapters off."""
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from transformers import GPT2Config, GPT2LMHeadModel

N_SYM, CTX_BASE, N_CTX = 40, 40, 8
VOCAB = N_SYM + N_CTX + 2
CTX_TOK, ASK = VOCAB - 2, VOCAB - 1
Q = 5


def questions(n, gen):
    return torch.randint(0, N_SYM, (n, Q), generator=gen)


def answers(q, offset):
    return (q + offset) % N_SYM


def with_context(q, ctx):
    head = torch.stack([torch.full_like(ctx, CTX_TOK), ctx + CTX_BASE], dim=1)
    return torch.cat([head, q, torch.full((len(q), 1), ASK)], dim=1)


def without_context(q):
    return torch.cat([q, torch.full((len(q), 1), ASK)], dim=1)


def pretrain_base(gen):
    base = GPT2LMHeadModel(GPT2Config(vocab_size=VOCAB, n_embd=48, n_layer=2, n_head=4, n_positions=32))
    opt = torch.optim.AdamW(base.parameters(), lr=4e-3)
    base.train()
    for _ in range(200):
        q = questions(32, gen)
        ctx = torch.randint(0, N_CTX, (32,), generator=gen)
        prompt = with_context(q, ctx)
        full = torch.cat([prompt, answers(q, ctx.unsqueeze(1))], dim=1)
        logits = base(full).logits[:, prompt.size(1) - 1:-1]
        loss = F.cross_entropy(logits.flatten(0, 1), full[:, prompt.size(1):].flatten())
        opt.zero_grad()
        loss.backward()
        opt.step()
    print(f"base model nll {loss.item():.3f}")
    return base


def teacher_logits(model, prompt, answer):
    model.eval()
    with torch.no_grad(), model.disable_adapter():
        out = model(torch.cat([prompt, answer], dim=1)).logits
    return out[:, prompt.size(1) - 1:-1]


def student_logits(model, prompt, answer):
    out = model(torch.cat([prompt, answer], dim=1)).logits
    return out[:, prompt.size(1) - 1:-1]


@torch.no_grad()
def accuracy(model, gen, offset):
    model.eval()
    q = questions(64, gen)
    pred = student_logits(model, without_context(q), answers(q, offset)).argmax(-1)
    model.train()
    return (pred == answers(q, offset)).float().mean().item()


def main():
    torch.manual_seed(0)
    gen = torch.Generator().manual_seed(0)
    base = pretrain_base(gen)
    model = get_peft_model(base, LoraConfig(r=8, lora_alpha=32, lora_dropout=0.1, fan_in_fan_out=True,
                                            target_modules=["c_attn", "c_proj", "c_fc"]))
    model.print_trainable_parameters()
    trainable = [p for p in model.parameters() if p.requires_grad]
    opt = torch.optim.AdamW(trainable, lr=5e-3)
    fixed = 3
    model.train()
    for step in range(60):
        q = questions(16, gen)
        ctx = torch.full((16,), fixed)
        y = answers(q, fixed)
        t = teacher_logits(model, with_context(q, ctx), y).log_softmax(-1)
        s = student_logits(model, without_context(q), y).log_softmax(-1)
        loss = F.kl_div(s.flatten(0, 1), t.flatten(0, 1), reduction="batchmean", log_target=True)
        opt.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trainable, 1.0)
        opt.step()
        if (step + 1) % 20 == 0:
            print(f"step {step + 1} kl {loss.item():.4f}")
    print(f"accuracy without the context: {accuracy(model, gen, fixed):.3f}")
    print(f"final loss {loss.item():.4f}")


main()
