"""Supervised token-level KD on completions only, GPT-2 architecture with toy vocabulary."""
import torch
import torch.nn.functional as F
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.utils import logging

logging.set_verbosity_error()
torch.manual_seed(17)

# 0 = pad, 1..20 = prompt alphabet, 21..40 = answer alphabet, 41 = end
PAD, EOS, VOCAB = 0, 41, 42
first_map = torch.randperm(20) + 21
chain = torch.randperm(20) + 21


def build_example():
    n_p = int(torch.randint(3, 7, (1,)))
    n_a = int(torch.randint(2, 5, (1,)))
    prompt = torch.randint(1, 21, (n_p,))
    ans = [first_map[prompt[-1] - 1]]
    for _ in range(n_a - 1):
        ans.append(chain[ans[-1] - 21])
    ids = torch.cat([prompt, torch.stack(ans), torch.tensor([EOS])])
    labels = ids.clone()
    labels[:n_p] = -100
    return ids, labels


def collate(n):
    rows = [build_example() for _ in range(n)]
    width = max(len(r[0]) for r in rows)
    ids = torch.full((n, width), PAD)
    labels = torch.full((n, width), -100)
    att = torch.zeros(n, width, dtype=torch.long)
    for i, (a, b) in enumerate(rows):
        ids[i, :len(a)], labels[i, :len(b)], att[i, :len(a)] = a, b, 1
    return {"input_ids": ids, "attention_mask": att, "labels": labels}


def gpt2(layers, width, heads):
    cfg = GPT2Config(vocab_size=VOCAB, n_positions=32, n_embd=width, n_layer=layers, n_head=heads,
                     resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=None, eos_token_id=EOS)
    return GPT2LMHeadModel(cfg)


def jsd(s, t, beta=0.5):
    ls, lt = s.log_softmax(-1), t.log_softmax(-1)
    mix = torch.logsumexp(torch.stack([ls, lt]), 0) - torch.log(torch.tensor(2.0))
    kl_t = F.kl_div(mix, lt, reduction="none", log_target=True)
    kl_s = F.kl_div(mix, ls, reduction="none", log_target=True)
    return (beta * kl_t + (1 - beta) * kl_s).sum(-1)


class GKD:
    def __init__(self, policy, model_ref, lr):
        self.policy, self.model_ref = policy, model_ref
        self.opt = torch.optim.AdamW(policy.parameters(), lr=lr, weight_decay=0.0)

    def compute_loss(self, batch):
        fwd = {k: batch[k] for k in ("input_ids", "attention_mask")}
        out = self.policy(**fwd).logits
        with torch.no_grad():
            ref = self.model_ref(**fwd).logits
        out, ref = out[:, :-1], ref[:, :-1]
        keep = batch["labels"][:, :-1] != -100
        return jsd(out[keep], ref[keep]).mean()

    def step(self, batch):
        self.policy.train()
        loss = self.compute_loss(batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.policy.parameters(), 1.0)
        self.opt.step()
        self.opt.zero_grad()
        return loss.item()


@torch.no_grad()
def token_acc(model):
    model.eval()
    state = torch.get_rng_state()
    torch.manual_seed(1000)
    b = collate(128)
    torch.set_rng_state(state)
    pred = model(b["input_ids"], attention_mask=b["attention_mask"]).logits[:, :-1].argmax(-1)
    lab = b["labels"][:, 1:]
    hit = pred == lab
    is_ans = lab != -100
    first = is_ans & (is_ans.cumsum(1) == 1)
    rest = is_ans & ~first & (lab != EOS)
    return round(hit[first].float().mean().item(), 3), round(hit[rest].float().mean().item(), 3)


model_ref = gpt2(2, 64, 4)
opt = torch.optim.AdamW(model_ref.parameters(), lr=5e-3)
for _ in range(90):
    b = collate(48)
    model_ref(**b).loss.backward()
    opt.step()
    opt.zero_grad()
model_ref.eval().requires_grad_(False)
print("reference: first answer token, later tokens", token_acc(model_ref))

torch.manual_seed(3)
trainer = GKD(gpt2(1, 48, 2), model_ref, lr=8e-3)
for i in range(80):
    loss = trainer.step(collate(48))
    if i % 20 == 19:
        print(f"step {i + 1} jsd {loss:.4f}")
print("policy: first answer token, later tokens", token_acc(trainer.policy))
