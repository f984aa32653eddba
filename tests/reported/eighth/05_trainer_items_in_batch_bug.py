import tempfile

import torch
import torch.nn.functional as F
from torch.utils.data import Dataset
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments, set_seed

VOCAB = 100


class Dialogues(Dataset):
    """[1] question (4 tokens) [2] answer (1..12 tokens) [3]"""

    def __init__(self, size, seed):
        g = torch.Generator().manual_seed(seed)
        self.items = []
        for _ in range(size):
            q = torch.randint(4, VOCAB, (4,), generator=g)
            n = int(torch.randint(1, 13, (1,), generator=g))
            a = (q.repeat(3)[:n] * 3) % (VOCAB - 4) + 4
            ids = torch.cat([torch.tensor([1]), q, torch.tensor([2]), a, torch.tensor([3])])
            labels = ids.clone()
            labels[:6] = -100
            self.items.append({"input_ids": ids, "labels": labels})

    def __len__(self):
        return len(self.items)

    def __getitem__(self, i):
        return self.items[i]


def collate(rows):
    width = max(len(r["input_ids"]) for r in rows)
    pad = lambda x, v: F.pad(x, (0, width - len(x)), value=v)
    return {
        "input_ids": torch.stack([pad(r["input_ids"], 0) for r in rows]),
        "attention_mask": torch.stack([pad(torch.ones_like(r["input_ids"]), 0) for r in rows]),
        "labels": torch.stack([pad(r["labels"], -100) for r in rows]),
    }


class KDTrainer(Trainer):
    def __init__(self, *args, teacher, tau=2.0, alpha=0.7, **kwargs):
        super().__init__(*args, **kwargs)
        self.teacher = teacher.eval().requires_grad_(False)
        self.tau, self.alpha = tau, alpha

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        labels = inputs["labels"]
        feed = {k: inputs[k] for k in ("input_ids", "attention_mask")}
        outputs = model(**feed)
        with torch.no_grad():
            teacher_logits = self.teacher(**feed).logits
        target = labels[:, 1:]
        keep = target != -100
        s = outputs.logits[:, :-1][keep].float()
        t = teacher_logits[:, :-1][keep].float()
        ce = F.cross_entropy(s, target[keep], reduction="sum")
        kd = F.kl_div(F.log_softmax(s / self.tau, -1), F.log_softmax(t / self.tau, -1),
                      log_target=True, reduction="sum") * self.tau ** 2
        denom = keep.sum()
        loss = (self.alpha * kd + (1 - self.alpha) * ce) / denom
        return (loss, outputs) if return_outputs else loss


def make(width):
    return LlamaForCausalLM(LlamaConfig(vocab_size=VOCAB, hidden_size=width, intermediate_size=2 * width,
                                        num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
                                        max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=3))


def args_for(folder, **kw):
    return TrainingArguments(output_dir=folder, per_device_train_batch_size=4, learning_rate=3e-3, logging_steps=20,
                             save_strategy="no", report_to=[], remove_unused_columns=False, use_cpu=True,
                             disable_tqdm=True, seed=1, dataloader_pin_memory=False, **kw)


def main():
    set_seed(1)
    with tempfile.TemporaryDirectory() as tmp:
        train, dev = Dialogues(640, 0), Dialogues(64, 1)
        teacher = make(64)
        fit = Trainer(teacher, args_for(tmp + "/t", max_steps=150), train_dataset=train, data_collator=collate)
        fit.train()

        student = make(32)
        trainer = KDTrainer(student, args_for(tmp + "/s", max_steps=40, gradient_accumulation_steps=4,
                                              max_grad_norm=0.0),
                            train_dataset=train, eval_dataset=dev, data_collator=collate, teacher=teacher)
        result = trainer.train()
        print(trainer.evaluate())
        trainer.save_model(tmp + "/final")
        print(f"final loss {result.training_loss:.4f}")


if __name__ == "__main__":
    main()
