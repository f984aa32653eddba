"""transformers: a Trainer whose compute_loss adds the distillation term, as its documentation shows it."""

import tempfile

import torch
import transformers
from torch.nn.functional import kl_div


def bert(width, layers):
    sizes = {"hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": layers}
    config = transformers.BertConfig(vocab_size=50, num_labels=5, num_attention_heads=2, **sizes)
    return transformers.BertForSequenceClassification(config)


class DistillationTrainer(transformers.Trainer):
    teacher = None

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        out = model(**inputs)
        if self.teacher is None:
            return out.loss
        with torch.no_grad():
            t = self.teacher(**inputs).logits
        kd = 16 * kl_div((out.logits / 4).log_softmax(-1), (t / 4).softmax(-1), reduction="batchmean")
        return 0.3 * out.loss + 0.7 * kd


transformers.set_seed(0)
labels = torch.arange(384) % 5
words = torch.randint(0, 50, (384, 8))
words[:, :3] = labels[:, None]
data = [{"input_ids": w, "labels": y} for w, y in zip(words, labels, strict=True)]
settings = {"per_device_train_batch_size": 32, "learning_rate": 1e-3, "report_to": [], "use_cpu": True, "max_steps": 48}
arguments = transformers.TrainingArguments(tempfile.mkdtemp(), save_strategy="no", disable_tqdm=True, **settings)
teacher = bert(32, 2)
DistillationTrainer(teacher, arguments, train_dataset=data).train()
trainer = DistillationTrainer(bert(8, 1), arguments, train_dataset=data)
trainer.teacher = teacher.eval()
trainer.train()
