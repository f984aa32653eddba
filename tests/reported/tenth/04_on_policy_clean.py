"""On-policy distillation: the small policy samples, the expert scores, we minimise the reverse KL."""
import torch
import torch.nn.functional as F
from transformers import GPT2Config, GPT2LMHeadModel

torch.manual_seed(7)
V, PROMPT, NEW = 24, 3, 8
SUCC = torch.stack([torch.randperm(V)[:3] for _ in range(V)])


def corpus(n):
    ids = torch.randint(0, V, (n, 1))
    for _ in range(PROMPT + NEW - 1):
        pick = torch.multinomial(torch.tensor([0.5, 0.3, 0.2]).expand(n, 3), 1)
        ids = torch.cat([ids, SUCC[ids[:, -1]].gather(1, pick)], 1)
    return ids


def gpt(n_embd, n_layer):
    cfg = GPT2Config(vocab_size=V, n_positions=32, n_embd=n_embd, n_layer=n_layer, n_head=2,
                     resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0, eos_token_id=0)
    return GPT2LMHeadModel(cfg)


def supervised(model, steps, lr):
    opt = torch.optim.AdamW(model.parameters(), lr=lr)
    model.train()
    for _ in range(steps):
        ids = corpus(32)
        loss = model(input_ids=ids, labels=ids).loss
        opt.zero_grad()
        loss.backward()
        opt.step()
    return loss.item()


@torch.no_grad()
def rollout(model, prompts):
    was_training = model.training
    model.eval()
    ids = prompts
    for _ in range(NEW):
        probs = model(input_ids=ids).logits[:, -1].softmax(-1)
        ids = torch.cat([ids, torch.multinomial(probs, 1)], 1)
    model.train(was_training)
    return ids


def token_divergence(policy_logits, expert_logits, mode):
    lp, le = policy_logits.log_softmax(-1), expert_logits.log_softmax(-1)
    if mode == "forward":
        kl = F.kl_div(lp, le, log_target=True, reduction="none")
    elif mode == "reverse":
        kl = F.kl_div(le, lp, log_target=True, reduction="none")
    else:
        raise ValueError(mode)
    return kl.sum(-1).mean()


def legal_rate(model):
    ids = rollout(model, corpus(200)[:, :PROMPT])
    prev, nxt = ids[:, PROMPT - 1:-1], ids[:, PROMPT:]
    return (SUCC[prev] == nxt.unsqueeze(-1)).any(-1).float().mean().item()


expert = gpt(64, 2)
print("expert nll", round(supervised(expert, 220, 3e-3), 3))
expert.eval().requires_grad_(False)
print("expert legal", round(legal_rate(expert), 3))

policy = gpt(24, 1)
print("policy warm start nll", round(supervised(policy, 60, 3e-3), 3), "legal", round(legal_rate(policy), 3))

opt = torch.optim.AdamW(policy.parameters(), lr=3e-3)
policy.train()
for it in range(150):
    ids = rollout(policy, corpus(32)[:, :PROMPT])
    with torch.no_grad():
        expert_logits = expert(input_ids=ids).logits[:, PROMPT - 1:-1]
    policy_logits = policy(input_ids=ids).logits[:, PROMPT - 1:-1]
    loss = token_divergence(policy_logits, expert_logits, mode="reverse")
    opt.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
    opt.step()
    if it % 25 == 0:
        print(f"iter {it} kl {loss.item():.3f}")
print("policy legal", round(legal_rate(policy), 3))
