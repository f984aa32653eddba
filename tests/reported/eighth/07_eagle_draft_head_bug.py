"""Train a one-layer speculative draft head (EAGLE style) against a frozen target model."""
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

torch.manual_seed(5)
VOCAB, DRAFT_VOCAB, HIDDEN = 160, 64, 48
PROMPT, MAX_ANSWER = 5, 9


def sample_chat(n, gen):
    """prompt of PROMPT tokens, answer of 3..MAX_ANSWER tokens (counting up from the prompt's last token), pad 0."""
    prompt = torch.randint(100, VOCAB, (n, PROMPT), generator=gen)
    start = prompt[:, -1:] - 99
    answer = (start + torch.arange(MAX_ANSWER)) % 99 + 1
    length = torch.randint(3, MAX_ANSWER + 1, (n, 1), generator=gen)
    real = torch.arange(MAX_ANSWER) < length
    ids = torch.cat([prompt, answer * real], dim=1)
    loss_mask = torch.cat([torch.zeros(n, PROMPT, dtype=torch.bool), real], dim=1)
    attn = torch.cat([torch.ones(n, PROMPT, dtype=torch.long), real.long()], dim=1)
    return ids, attn, loss_mask


def get_target(gen):
    target = LlamaForCausalLM(LlamaConfig(vocab_size=VOCAB, hidden_size=HIDDEN, intermediate_size=96,
                                          num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
                                          max_position_embeddings=32, pad_token_id=0))
    opt = torch.optim.AdamW(target.parameters(), lr=4e-3)
    for _ in range(150):
        ids, attn, mask = sample_chat(32, gen)
        loss = target(input_ids=ids, attention_mask=attn, labels=ids.masked_fill(~mask, -100)).loss
        opt.zero_grad(); loss.backward(); opt.step()
    print("target model nll:", round(loss.item(), 4))
    return target.eval().requires_grad_(False)


def frequent_tokens(gen):
    counts = torch.zeros(VOCAB)
    for _ in range(20):
        ids, _, mask = sample_chat(64, gen)
        counts += torch.bincount(ids[mask], minlength=VOCAB)
    return counts.topk(DRAFT_VOCAB).indices.sort().values


class DraftHead(nn.Module):
    def __init__(self, embed):
        super().__init__()
        self.fuse = nn.Linear(2 * HIDDEN, HIDDEN)
        self.block = nn.TransformerEncoderLayer(HIDDEN, 4, 96, dropout=0.0, batch_first=True, norm_first=True)
        self.norm = nn.LayerNorm(HIDDEN)
        self.lm_head = nn.Linear(HIDDEN, DRAFT_VOCAB, bias=False)
        self._embed = [embed]

    def forward(self, hidden, next_ids):
        x = self.fuse(torch.cat([hidden, self._embed[0](next_ids)], dim=-1))
        causal = nn.Transformer.generate_square_subsequent_mask(x.size(1))
        return self.lm_head(self.norm(self.block(x, src_mask=causal, is_causal=True)))


gen = torch.Generator().manual_seed(17)
target = get_target(gen)
draft_to_target = frequent_tokens(gen)
in_draft = torch.zeros(VOCAB, dtype=torch.bool)
in_draft[draft_to_target] = True

draft = DraftHead(target.get_input_embeddings())
optimizer = torch.optim.AdamW(draft.parameters(), lr=3e-3, weight_decay=0.0)
warmup = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: min(1.0, (s + 1) / 8))
draft.train()

for step in range(1, 91):
    ids, attn, loss_mask = sample_chat(16, gen)
    with torch.no_grad():
        out = target(input_ids=ids, attention_mask=attn, output_hidden_states=True)
        feats = out.hidden_states[-1][:, :-2]
        next_logits = out.logits[:, 1:-1]
        soft = next_logits[..., draft_to_target].float().softmax(-1)
        covered = in_draft[next_logits.argmax(-1)]
    logits = draft(feats, ids[:, 1:-1])
    keep = loss_mask[:, :-2] & covered
    logp = logits.float().log_softmax(-1)
    per_token = -(soft * logp).sum(-1)
    loss = (per_token * keep).sum() / keep.sum().clamp(min=1)
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(draft.parameters(), 0.5)
    optimizer.step()
    warmup.step()
    if step % 30 == 0:
        hit = ((logits.argmax(-1) == soft.argmax(-1)) & keep).sum() / keep.sum()
        print(f"step {step} soft-ce {loss.item():.4f} top1 agreement {hit.item():.3f}")

print(f"final loss {loss.item():.4f}")
