"""LoRA student, fully tuned teacher; the divergence is computed chunk by chunk so that the logits never exist at once."""
import copy

import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from torch.utils.checkpoint import checkpoint
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.utils import logging

logging.set_verbosity_error()
torch.manual_seed(13)
VOCAB, SEQ = 64, 16
chain_general = torch.randperm(VOCAB)
chain_domain = torch.randperm(VOCAB)


def corpus(chain, n, eps=0.1):
    cols = [torch.randint(0, VOCAB, (n,))]
    for _ in range(SEQ - 1):
        nxt = chain[cols[-1]]
        rnd = torch.randint(0, VOCAB, (n,))
        cols.append(torch.where(torch.rand(n) < eps, rnd, nxt))
    return torch.stack(cols, 1)


def fit(model, chain, steps, lr):
    opt = torch.optim.AdamW(model.parameters(), lr=lr)
    for _ in range(steps):
        ids = corpus(chain, 24)
        model(input_ids=ids, labels=ids).loss.backward()
        opt.step()
        opt.zero_grad()
    return model


@torch.no_grad()
def acc(model, chain):
    model.eval()
    st = torch.get_rng_state()
    torch.manual_seed(99)
    ids = corpus(chain, 64, eps=0.0)
    torch.set_rng_state(st)
    return (model(input_ids=ids).logits[:, :-1].argmax(-1) == ids[:, 1:]).float().mean().item()


def chunk_kl(h_s, h_t, head_s, head_t):
    log_q = head_s(h_s).float().log_softmax(-1)
    with torch.no_grad():
        log_p = head_t(h_t).float().log_softmax(-1)
    return F.kl_div(log_q, log_p, reduction="sum", log_target=True)


def chunked_divergence(h_s, h_t, head_s, head_t, chunk=96):
    h_s, h_t = h_s.flatten(0, 1), h_t.flatten(0, 1)
    total = h_s.new_zeros(())
    for a in range(0, len(h_s), chunk):
        total = total + checkpoint(chunk_kl, h_s[a:a + chunk], h_t[a:a + chunk], head_s, head_t,
                                   use_reentrant=False)
    return total / len(h_s)


def linear_head(layer):
    def apply(h):
        return F.linear(h, layer.weight, layer.bias)
    return apply


class ChunkedDistiller:
    def __init__(self, student, teacher, lr=2e-2):
        self.student, self.teacher = student, teacher
        inner = student.get_base_model()
        self.body_s, self.head_s = inner.model, linear_head(inner.lm_head)
        self.body_t, self.head_t = teacher.model, linear_head(teacher.lm_head)
        self.params = [p for p in student.parameters() if p.requires_grad]
        self.opt = torch.optim.AdamW(self.params, lr=lr, weight_decay=0.0)

    def step(self, ids):
        self.student.train()
        h_s = self.body_s(input_ids=ids).last_hidden_state[:, :-1]
        with torch.no_grad():
            h_t = self.body_t(input_ids=ids).last_hidden_state[:, :-1]
        loss = chunked_divergence(h_s, h_t, self.head_s, self.head_t)
        self.opt.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.params, 1.0)
        self.opt.step()
        return loss.item()


def main():
    cfg = LlamaConfig(vocab_size=VOCAB, hidden_size=48, intermediate_size=96, num_hidden_layers=1,
                      num_attention_heads=2, num_key_value_heads=2, tie_word_embeddings=False,
                      max_position_embeddings=32, bos_token_id=None, eos_token_id=None)
    base = fit(LlamaForCausalLM(cfg), chain_general, 60, 1e-2)
    teacher = fit(copy.deepcopy(base), chain_domain, 60, 1e-2).eval().requires_grad_(False)
    print(f"base on domain {acc(base, chain_domain):.3f} teacher on domain {acc(teacher, chain_domain):.3f}")

    torch.manual_seed(14)
    lora = LoraConfig(r=8, lora_alpha=16, lora_dropout=0.0, target_modules=["q_proj", "v_proj", "lm_head"])
    student = get_peft_model(base, lora)
    d = ChunkedDistiller(student, teacher)
    for i in range(80):
        loss = d.step(corpus(chain_domain, 24))
        if i % 20 == 19:
            print(f"step {i + 1} kl {loss:.4f}")
    print(f"student on domain {acc(student, chain_domain):.3f}")


if __name__ == "__main__":
    main()
