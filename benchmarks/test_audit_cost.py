"""What `kdbench audit` costs: a script of many steps under it, against its own first fifty, by what it distils.

The goal: never more than three times the script's own fifty steps, plus twenty seconds. What is timed includes Python's
start, the teacher's training and the seconds for which the script runs on.
"""

import subprocess
import sys
import textwrap
import time

import pytest

STEPS, LONG = 50, 100_000
TIMES, PLUS = 3, 20.0

SCRIPT = """
    import sys
    import torch, torch.nn as nn, torch.nn.functional as F
    torch.manual_seed(0)
    torch.set_num_threads(1)
    T, style = 3.0, {style!r}

    class Words(nn.Module):
        def __init__(self, width, words={words}):
            super().__init__()
            self.table, self.mix = nn.Embedding(words, width), nn.GRU(width, width, batch_first=True)
            self.head = nn.Linear(width, words)

        def forward(self, x):
            hidden = self.mix(self.table(x))[0]
            return hidden, self.head(hidden)

    class Pictures(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.body = nn.Sequential(nn.Conv2d(3, width, 3, 2), nn.ReLU(), nn.Conv2d(width, width, 3, 2), nn.ReLU())
            self.head = nn.Linear(width, 100)

        def forward(self, x):
            hidden = self.body(x).mean((2, 3))
            return hidden, self.head(hidden)

    def batch():
        if style == "image":
            x = torch.randn({batch}, 3, 32, 32)
            return x, x.mean((1, 2, 3)).mul(1000).long() % 100
        x = torch.randint(0, {words}, (8, {length}))
        return x, x.roll(-1, 1)

    def distil(s, t):
        if style == "hidden-state":
            return F.mse_loss(s[0], t[0])
        p = (t[1] / T).softmax(-1)
        if style == "token-by-hand":
            return -(p * (s[1] / T - (s[1] / T).logsumexp(-1, keepdim=True))).sum(-1).mean() * T * T
        return F.kl_div(F.log_softmax(s[1] / T, -1), p, reduction="none").sum(-1).mean() * T * T

    def train(network, teacher, steps):
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
        for _ in range(steps):
            x, y = batch()
            answer = network(x)
            loss = F.cross_entropy(answer[1].flatten(0, -2), y.flatten())
            if teacher is not None:
                with torch.no_grad():
                    said = teacher(x)
                loss = 0.5 * loss + 0.5 * distil(answer, said)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    kind = Pictures if style == "image" else Words
    teacher, student = kind({width}), kind({width})
    train(teacher, None, 5)
    train(student, teacher.eval().requires_grad_(False), int(sys.argv[1]))
"""


@pytest.mark.parametrize("style", ["image", "token", "token-by-hand", "hidden-state"])
def test_audit_cost(cpu_only, sizes, measure, tmp_path, style):
    """Seconds of an audit of fifty steps, from the shell and back, of a script that would go on for hours."""
    amounts = (
        {"words": 64, "length": 4, "batch": 8, "width": 8}
        if sizes.toy
        else {"words": 4096, "length": 32, "batch": 128, "width": 64}
    )
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(SCRIPT).format(style=style, **amounts))
    begun = time.perf_counter()
    subprocess.run([sys.executable, script, str(STEPS)], check=True, capture_output=True)
    alone = time.perf_counter() - begun
    command = [sys.executable, "-m", "kdbench", "audit", *(["--run-on", "0.2"] if sizes.toy else []), script, str(LONG)]

    def audit():
        done = subprocess.run(command, capture_output=True, text=True)
        assert f"{STEPS} steps of distillation were seen; it was cut off" in done.stdout, done.stderr[-2000:]

    measure.seconds(audit, goal=TIMES * alone + PLUS, rounds=1, alone=round(alone, 1))
