"""Context distillation: the base model reads a hint token, the LoRA model must do without it."""
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

torch.manual_seed(21)
WORDS, HINTS, LEN = 20, 2, 12
VOCAB = WORDS + HINTS
RULES = torch.stack([torch.randperm(WORDS) for _ in range(HINTS)])


def episodes(n, rule):
    tok = torch.randint(0, WORDS, (n,))
    seq = [tok]
    for _ in range(LEN - 1):
        nxt = RULES[rule, tok]
        noise = torch.rand(n) < 0.1
        tok = torch.where(noise, torch.randint(0, WORDS, (n,)), nxt)
        seq.append(tok)
    return torch.stack(seq, 1)


def with_hint(ids, rule):
    return torch.cat([WORDS + rule.unsqueeze(1), ids], 1)


def pretrain(model, steps=300):
    opt = torch.optim.AdamW(model.parameters(), lr=3e-3)
    model.train()
    for _ in range(steps):
        rule = torch.randint(0, HINTS, (32,))
        ids = with_hint(episodes(32, rule), rule)
        loss = model(input_ids=ids, labels=ids).loss
        opt.zero_grad()
        loss.backward()
        opt.step()
    return loss.item()


class ContextDistiller:
    def __init__(self, base, rule):
        cfg = LoraConfig(r=8, lora_alpha=16, lora_dropout=0.1, task_type="CAUSAL_LM",
                         target_modules=["q_proj", "v_proj", "o_proj", "up_proj", "down_proj"])
        self.net = get_peft_model(base, cfg)
        self.rule = rule
        self.opt = torch.optim.AdamW([p for p in self.net.parameters() if p.requires_grad], lr=1e-2)

    @torch.no_grad()
    def hinted_logits(self, ids, rule):
        self.net.eval()
        with self.net.disable_adapter():
            logits = self.net(input_ids=with_hint(ids, rule)).logits[:, 1:]
        return logits

    def step(self, ids):
        rule = torch.full((len(ids),), self.rule)
        target = self.hinted_logits(ids, rule).log_softmax(-1)
        pred = self.net(input_ids=ids).logits.log_softmax(-1)
        loss = F.kl_div(pred.flatten(0, 1), target.flatten(0, 1), log_target=True, reduction="batchmean")
        self.opt.zero_grad()
        loss.backward()
        self.opt.step()
        return loss.item()

    def fit(self, steps):
        self.net.train()
        for i in range(steps):
            rule = torch.full((32,), self.rule)
            loss = self.step(episodes(32, rule))
            if i % 25 == 0:
                print(f"step {i} kl {loss:.3f}")

    @torch.no_grad()
    def evaluate(self):
        self.net.eval()
        ids = episodes(200, torch.full((200,), self.rule))
        pred = self.net(input_ids=ids).logits[:, :-1].argmax(-1)
        return (pred == RULES[self.rule, ids[:, :-1]]).float().mean().item()


base = LlamaForCausalLM(LlamaConfig(
    vocab_size=VOCAB, hidden_size=48, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=4, max_position_embeddings=32))
print("base nll", round(pretrain(base), 3))
distiller = ContextDistiller(base, rule=1)
print("before", round(distiller.evaluate(), 3))
distiller.fit(150)
print("after", round(distiller.evaluate(), 3))
