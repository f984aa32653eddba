"""trl: DistillationTrainer (on-policy, reverse KL, the chunked loss that never holds whole logits)."""

import tempfile

import tiny_words
from datasets import Dataset
from trl import DistillationConfig, DistillationTrainer

words = tiny_words.tokenizer()
teacher, student = tiny_words.learn(tiny_words.llama(64, seed=1), words), tiny_words.llama(16)
prompts = [[{"role": "user", "content": s.split(" ", 1)[0]}] for s in tiny_words.sentences(64)]
arguments = DistillationConfig(
    tempfile.mkdtemp(), max_steps=24, per_device_train_batch_size=8, learning_rate=2e-3, max_completion_length=6,
    use_cpu=True, bf16=False, report_to=[], save_strategy="no", disable_tqdm=True,
)  # fmt: skip
data = Dataset.from_dict({"prompt": prompts})
DistillationTrainer(student, teacher, arguments, train_dataset=data, processing_class=words).train()
