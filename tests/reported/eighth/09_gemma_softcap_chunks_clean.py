import tempfile

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint
from transformers import Gemma2Config, Gemma2ForCausalLM

SEED, VOCAB, SEQ = 13, 300, 18


def gemma(width, layers):
    return Gemma2ForCausalLM._from_config(Gemma2Config(
        vocab_size=VOCAB, hidden_size=width, intermediate_size=2 * width, num_hidden_layers=layers,
        num_attention_heads=4, num_key_value_heads=2, head_dim=16, query_pre_attn_scalar=16, sliding_window=16,
        max_position_embeddings=64, final_logit_softcapping=6.0, attn_logit_softcapping=50.0,
        pad_token_id=0, bos_token_id=1, eos_token_id=2), attn_implementation="eager")


def token_stream(steps, bs, seed):
    g = torch.Generator().manual_seed(seed)
    jump = torch.randint(3, VOCAB, (VOCAB,), generator=torch.Generator().manual_seed(SEED))
    for _ in range(steps):
        rows = [torch.randint(3, 60, (bs,), generator=g)]
        for _ in range(SEQ - 1):
            noise = torch.rand(bs, generator=g) < 0.1
            rows.append(torch.where(noise, torch.randint(3, 60, (bs,), generator=g), jump[rows[-1]]))
        yield torch.stack(rows, dim=1)


def fit_teacher(model):
    opt = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for ids in token_stream(70, 24, 1):
        loss = model(input_ids=ids, labels=ids).loss
        opt.zero_grad()
        loss.backward()
        opt.step()
    print(f"teacher nll {loss.item():.3f}")
    return model.eval().requires_grad_(False)


def project(model, hidden):
    logits = model.lm_head(hidden)
    cap = model.config.final_logit_softcapping
    return cap * torch.tanh(logits / cap)


def chunk_kl(student, teacher, h_s, h_t):
    log_s = F.log_softmax(project(student, h_s).float(), dim=-1)
    with torch.no_grad():
        log_t = F.log_softmax(project(teacher, h_t).float(), dim=-1)
    return F.kl_div(log_s, log_t, log_target=True, reduction="sum")


def chunked_forward_kl(student, teacher, ids, chunk=96):
    """Never holds more than `chunk` rows of logits; each chunk is recomputed in backward."""
    with torch.no_grad():
        h_t = teacher.model(input_ids=ids).last_hidden_state[:, :-1].flatten(0, 1)
    h_s = student.model(input_ids=ids).last_hidden_state[:, :-1].flatten(0, 1)
    total = h_s.new_zeros(())
    for a, b in zip(h_s.split(chunk), h_t.split(chunk)):
        total = total + checkpoint(chunk_kl, student, teacher, a, b, use_reentrant=False)
    return total / h_s.size(0)


@torch.no_grad()
def agreement(student, teacher):
    student.eval()
    ids = next(token_stream(1, 48, 99))
    same = student(input_ids=ids).logits.argmax(-1) == teacher(input_ids=ids).logits.argmax(-1)
    return same.float().mean().item()


def main():
    torch.manual_seed(SEED)
    teacher = fit_teacher(gemma(48, 2))
    student = gemma(32, 2)
    student.train()
    opt = torch.optim.AdamW(student.parameters(), lr=4e-3)
    sched = torch.optim.lr_scheduler.OneCycleLR(opt, max_lr=4e-3, total_steps=50)
    for step, ids in enumerate(token_stream(50, 12, 2)):
        loss = chunked_forward_kl(student, teacher, ids)
        opt.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        opt.step()
        sched.step()
        if step % 10 == 9:
            print(f"step {step + 1} kl/token {loss.item():.4f}")
    print(f"top-1 agreement {agreement(student, teacher):.3f}")
    with tempfile.TemporaryDirectory() as out:
        student.save_pretrained(out)
    print(f"final loss {loss.item():.4f}")


if __name__ == "__main__":
    main()
