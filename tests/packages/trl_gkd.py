"""trl: GKDTrainer with half of the batches written by the student itself."""

import tempfile

import tiny_words
from datasets import Dataset
from trl.experimental.gkd import GKDConfig, GKDTrainer

words = tiny_words.tokenizer()
teacher, student = tiny_words.learn(tiny_words.llama(64, seed=1), words), tiny_words.llama(16)
pairs = [s.split(" ", 1) for s in tiny_words.sentences(64)]
talks = [[{"role": "user", "content": q}, {"role": "assistant", "content": a}] for q, a in pairs]
arguments = GKDConfig(
    tempfile.mkdtemp(), max_steps=24, per_device_train_batch_size=8, learning_rate=2e-3, max_new_tokens=6, lmbda=0.5,
    beta=0.5, temperature=0.9, use_cpu=True, bf16=False, report_to=[], save_strategy="no", disable_tqdm=True,
)  # fmt: skip
data = Dataset.from_dict({"messages": talks})
GKDTrainer(student, teacher, arguments, train_dataset=data, processing_class=words).train()
