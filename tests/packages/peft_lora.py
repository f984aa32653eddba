"""peft: fine-tuning with adapters, held to the base model: the teacher is the same model with its adapters off."""

import peft
import tiny_words
import torch
from torch.nn.functional import cross_entropy, kl_div

words = tiny_words.tokenizer()
base = tiny_words.learn(tiny_words.llama(32), words)
lora = peft.LoraConfig(r=4, lora_alpha=8, lora_dropout=0.1, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
model = peft.get_peft_model(base, lora)
optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
for step in range(40):
    batch = words(tiny_words.sentences(16, seed=step), padding=True, return_tensors="pt")
    ids, mask = batch.input_ids, batch.attention_mask
    model.eval()
    with torch.no_grad(), model.disable_adapter():
        taught = model(input_ids=ids, attention_mask=mask).logits
    model.train()
    out = model(input_ids=ids, attention_mask=mask).logits
    kd = kl_div(out.log_softmax(-1)[mask > 0], taught.softmax(-1)[mask > 0], reduction="batchmean")
    goal = ids[:, 1:].masked_fill(mask[:, 1:] == 0, -100)
    loss = 0.5 * cross_entropy(out[:, :-1].flatten(0, 1), goal.flatten()) + 0.5 * kd
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
