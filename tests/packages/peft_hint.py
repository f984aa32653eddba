"""peft: the base model with its adapters off, shown a hint, teaches the same model with its adapters on."""

import peft
import tiny_words
import torch
from torch.nn.functional import kl_div

words = tiny_words.tokenizer()
base = tiny_words.learn(tiny_words.llama(32), words)
lora = peft.LoraConfig(r=4, lora_alpha=8, lora_dropout=0.1, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
model = peft.get_peft_model(base, lora)
optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
hint = torch.tensor(words.encode("w0 w1"))
for step in range(40):
    batch = words(tiny_words.sentences(16, seed=step), padding=True, return_tensors="pt")
    ids, mask = batch.input_ids, batch.attention_mask
    told = torch.cat([hint.expand(len(ids), 2), ids], 1)
    seen = torch.cat([torch.ones_like(told[:, :2]), mask], 1)
    model.eval()
    with torch.no_grad(), model.disable_adapter():
        taught = model(input_ids=told, attention_mask=seen).logits[:, 2:]
    model.train()
    out = model(input_ids=ids, attention_mask=mask).logits
    loss = kl_div(out.log_softmax(-1)[mask > 0], taught.softmax(-1)[mask > 0], reduction="batchmean")
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
