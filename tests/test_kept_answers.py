"""The teacher is asked once: kept answers change no bit, are read where they may be, and nowhere else."""

import dataclasses
import shutil
from dataclasses import dataclass

import pytest
import torch
from conftest import put_back

from kdbench.harness import faults, study
from kdbench.harness.faults.registry import SEAMS
from kdbench.harness.plan.plan import Ground, make_plan
from kdbench.harness.plan.preset import load_preset
from kdbench.harness.records.record import StudyFolder, repeat_of
from kdbench.harness.records.spec import TeacherRef
from kdbench.harness.run import cost, kept_answers, trial
from kdbench.harness.run.scheduler import Outcome
from kdbench.harness.run.sweeping import sweep
from kdbench.kd import answers, train
from kdbench.kd.answers import Answers, may_keep, stacked
from kdbench.kd.data import prepare as prepare_data
from kdbench.kd.methods import METHODS, Method, MethodSettings, Soft, method
from kdbench.kd.procedure import CANONICAL
from kdbench.kd.recipe import Recipe

CPU = torch.device("cpu")
OWN, STEPS, EPOCHS = 3, 2, 4
"Fewer steps than twenty stand for those that are watched, so that a training takes a second."
READ = EPOCHS - OWN // STEPS
"Epochs with a step behind the watched ones: the second has one, the first has none."


_LIVE = {}
"What came of the trainings without kept answers, each of which several tests need."


@pytest.fixture
def trained(prepare, tmp_path, monkeypatch):
    """Train with the answers of a folder; return the training, its epochs, and how often the teacher was asked."""
    monkeypatch.setattr(train, "OWN_STEPS", OWN)
    (tmp_path / "answers").mkdir()

    def run(name="logit", kept=True, asked="a", state=None, stop=None, **more):
        once = None if kept or state or stop or "procedure" in more else repr((name, sorted(more.items())))
        if once in _LIVE:
            return _LIVE[once]
        size = {"train_size": 8 * STEPS, "batch_size": 8, "val_size": 8, "epochs": EPOCHS}
        made = prepare(name, **{**size, **more})
        made.answers = Answers(tmp_path / "answers", asked) if kept else None
        made.resume = state
        calls, seen = [], []
        made.teacher.register_forward_hook(lambda *_: calls.append(1))
        for epoch in train.epochs(made):
            seen.append(epoch)
            if epoch.epoch == stop:
                break
        if once:
            _LIVE[once] = made, seen, len(calls)
        return made, seen, len(calls)

    return run


def files(made):
    return {path.name: path.read_bytes() for path in made.answers.folder.glob("*/*")}


@pytest.mark.parametrize("more", [{}, {"precision": "bf16"}, {"fold_teacher": True}], ids=["fp32", "bf16", "folded"])
def test_kept_answers_change_no_bit(trained, more):
    _, plain, every = trained(kept=False, **more)
    first, written, _ = trained(**more)
    kept = files(first)
    second, read, asked = trained(**more)
    assert plain == written == read, "an epoch has a digest of its weights"
    assert (first.kept_epochs, second.kept_epochs) == (0, READ) and len(kept) == READ
    assert files(second) == kept
    if "fold_teacher" not in more:  # the folded copy has no hook that counts
        assert (every, asked) == (STEPS * EPOCHS, OWN + READ)


def test_another_method_with_another_schedule_reads_what_the_first_was_answered(trained):
    other = {"epochs": EPOCHS + 1, "lr": 0.05, "momentum": 0.5, "max_norm": 2.0, "schedule": "epoch"}
    _, plain, _ = trained("dkd", kept=False, **other)
    trained("logit")
    made, seen, asked = trained("dkd", **other)
    assert seen == plain and made.kept_epochs == READ
    assert asked == OWN + READ + STEPS, "the watched steps, a batch of each epoch read, and the last epoch"


def test_every_training_checks_batches_of_its_own(trained, monkeypatch):
    trained("logit")
    ask, checked = train._Teaching._ask, {"logit": [], "ls": []}
    for name, steps in checked.items():

        def noted(self, teacher, images, step, steps=steps):
            steps.append((self.number, step))
            return ask(self, teacher, images, step)

        monkeypatch.setattr(train._Teaching, "_ask", noted)
        trained(name)
        del steps[:OWN]
        assert [number for number, _ in steps] == [1, 2, 3] and steps[0][1] == 1, "never of a step that is watched"
    assert checked["logit"] != checked["ls"]


@pytest.mark.parametrize("name", ["logit", "dkd"])
def test_a_training_that_was_cut_off_reads_on(trained, name):
    _, plain, _ = trained(name, kept=False)
    trained("logit")
    cut, _, _ = trained(name, stop=3)
    made, _, asked = trained(name, state=cut.state_dict())
    assert made.digests == [epoch.digest for epoch in plain] and made.resumed_after == 3
    assert (asked, made.kept_epochs) == (OWN + 2, 2), "the second epoch again, and the last"


def test_a_resumed_training_has_its_stand_ins_wherever_it_goes_on(trained):
    """With three steps an epoch, the one at which they take over is the first that it need not train again."""
    size = {"kept": False, "train_size": 8 * OWN, "epochs": 3}
    _, own, _ = trained(**size)
    _, plain, _ = trained(**size, fold_teacher=True)
    cut, _, _ = trained(**size, fold_teacher=True, stop=2)
    made, _, _ = trained(**size, fold_teacher=True, state=cut.state_dict())
    assert made.resumed_after == 2 and own[-1].digest != plain[-1].digest
    assert made.digests == [epoch.digest for epoch in plain]


# -- what is wrong with a file


def lines(caplog):
    return [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize("harm", ["a byte", "the end", "another epoch", "another teacher"])
def test_a_file_that_is_damaged_or_of_something_else_is_not_used(trained, caplog, harm):
    _, plain, _ = trained(kept=False)
    first, _, _ = trained()
    right, wrong = (first.answers.path(epoch) for epoch in (3, 2))
    whole = right.read_bytes()
    if harm == "a byte":
        right.write_bytes(whole[:-5] + bytes([whole[-5] ^ 1]) + whole[-4:])
    elif harm == "the end":
        right.write_bytes(whole[:-5])
    elif harm == "another epoch":
        shutil.copyfile(wrong, right)
    else:
        trained(asked="b")
        shutil.copyfile(dataclasses.replace(first.answers, asked="b").path(3), right)
    made, seen, asked = trained()
    assert seen == plain and made.kept_epochs == READ - 1 and asked == OWN + READ - 1 + STEPS
    assert lines(caplog) == [
        "the teacher is asked in epoch 4: what was kept of its answers is damaged, or answers something else"
    ]
    assert right.read_bytes() == whole, "written anew"


def test_a_tampered_answer_is_noticed_before_any_is_used(trained, caplog):
    _, plain, _ = trained(kept=False)
    first, _, _ = trained()
    whole = files(first)
    logits = first.answers.read(3, STEPS)
    first.answers.path(3).unlink()
    first.answers.write(3, torch.nextafter(logits, logits + 1))  # the last bit of each, under a digest of its own
    made, seen, _ = trained()
    assert seen == plain and made.kept_epochs == READ - 1 and files(made) == whole
    assert (
        len(lines(caplog)) == 1 and "epoch 4: what was kept of its answers is not what it answers" in lines(caplog)[0]
    )


def test_another_seeds_answers_under_this_ones_name_are_noticed(trained, caplog):
    _, plain, _ = trained(seed=4, kept=False)
    trained(seed=3)
    made, seen, _ = trained(seed=4)
    assert seen == plain and made.kept_epochs == 0 and len(lines(caplog)) == READ


@pytest.mark.parametrize("why", ["full", "no folder", "in the way"])
def test_a_training_goes_on_where_nothing_can_be_kept(trained, monkeypatch, tmp_path, caplog, why):
    if why == "full":
        monkeypatch.setattr(answers, "LIMIT", 2 * STEPS * 8 * 10 * 4)  # of the epochs' bytes: one fits, with its header
    elif why == "no folder":
        (tmp_path / "answers").rmdir()
    else:
        (tmp_path / "answers" / "a").write_text("")
    _, plain, _ = trained(kept=False)
    _, seen, _ = trained()
    assert seen == plain and (why == "in the way") == bool(caplog.records)
    left = {"full": ["1.answers"], "no folder": [], "in the way": []}[why]
    assert [path.name for path in (tmp_path / "answers").glob("*/*")] == left


def test_answers_that_are_laid_out_in_ways_are_not_kept():
    a = torch.arange(6.0).view(2, 3)
    assert torch.equal(stacked([a, a + 1]), torch.stack([a, a + 1]))
    for other in (a.bfloat16(), a[:1], a.T.contiguous().T):
        assert stacked([a, other]) is None
    assert stacked([a.T.contiguous().T] * 2) is None
    kept, same = torch.stack([a, a])[0], answers.same_bits
    assert same(a, kept) and not same(-a, kept) and not same(a.bfloat16(), kept) and not same(a.T.contiguous().T, kept)
    nothing = torch.full((2, 3), float("nan"))
    assert same(nothing, nothing.clone()) and not same(torch.tensor([0.0]), torch.tensor([-0.0]))


# -- whose answers may be kept


RECIPE = Recipe()


def test_decisions_near_the_teacher_have_it_asked():
    """One that is new is near, until somebody lists it here and in kd/answers.py."""
    apart = {"soft_loss", "combine", "clipped", "learning_rate", "select", "aggregate"}
    for seam in SEAMS:
        replaced = dataclasses.replace(CANONICAL, **{seam: lambda *_: None})
        assert may_keep(METHODS["logit"], replaced, RECIPE, CPU) == (seam in apart), seam
    assert may_keep(METHODS["logit"], CANONICAL, RECIPE, CPU)
    assert not may_keep(METHODS["logit"], CANONICAL, RECIPE, torch.device("cuda"))
    assert not may_keep(METHODS["logit"], CANONICAL, dataclasses.replace(RECIPE, precision="fp16"), CPU)


TEACHERS = {"teacher-provenance", "teacher-mode", "teacher-frozen", "teacher-above-chance", "same-input", "alignment"}
"Audits of a fault that is in the teacher, in what it is shown or in what becomes of its answers."


def test_no_fault_that_touches_the_teacher_can_hide_behind_kept_answers():
    touching = [
        fault
        for fault in faults.FAULTS.values()
        if TEACHERS & {*fault.caught_by, *fault.follows}
        or "teacher" in fault.name
        or fault.seam in ("stem", "split", "stream", "views", "set_modes", "trainable")
    ]
    assert {"cached-answers-by-step", "teacher-in-graph"} < {f.name for f in faults.FAULTS.values()}
    touching += [faults.get("cached-answers-by-step"), faults.get("alpha-swapped+random-teacher")]
    apart = {"student-teaches-itself", "teacher-softened-twice"}  # what the student's loss does with the logits
    assert len(touching) > 20
    for fault in touching:
        procedure = fault.inject(CANONICAL, lambda: None)
        assert may_keep(METHODS["logit"], procedure, RECIPE, CPU) == (fault.name in apart), fault.name


@pytest.mark.parametrize("name", ["teacher-rows-shuffled", "teacher-train-mode"])
def test_a_fault_near_the_teacher_acts_beside_kept_answers(trained, name):
    procedure = faults.get(name).inject(CANONICAL, lambda: None)
    _, plain, every = trained(kept=False, procedure=procedure)
    _, corrected, _ = trained()
    made, seen, asked = trained(procedure=procedure)
    assert seen == plain != corrected and asked == every and not made.kept_epochs


@pytest.mark.parametrize("name", ["alpha-twice", "lr-never-decays"])
def test_a_fault_apart_from_the_teacher_acts_on_kept_answers(trained, name):
    procedure = faults.get(name).inject(CANONICAL, lambda: None)
    _, plain, _ = trained(kept=False, procedure=procedure)
    _, corrected, _ = trained()
    made, seen, _ = trained(procedure=procedure)
    assert seen == plain != corrected and made.kept_epochs == READ


def test_methods_of_features_ask_the_teacher(trained):
    logits = {name for name in METHODS if may_keep(METHODS[name], CANONICAL, RECIPE, CPU)}
    assert logits == {"logit", "dist", "dkd", "ls", "mlkd", "nkd", "ttm", "wttm"}
    assert may_keep(METHODS["ls+dkd"], CANONICAL, RECIPE, CPU)
    assert not may_keep(METHODS["logit+at"], CANONICAL, RECIPE, CPU)
    trained("logit")
    made, _, asked = trained("feature")
    assert asked == STEPS * EPOCHS and not made.kept_epochs


def test_a_method_that_reads_features_without_a_word_is_given_them(trained):
    with put_back(METHODS):

        @method("untold", title="Untold", paper="none", soft=Soft.NONE)
        class Untold(Method):
            @dataclass(frozen=True, kw_only=True)
            class Settings(MethodSettings):
                kd_weight: float = 1.0

            def forward(self, student, teacher, batch):
                assert len(teacher.features) == 4
                return {"kd": (student.features[-1] - teacher.features[-1]).square().mean()}

        short = {"precision": "bf16", "epochs": 2}
        trained("logit", **short)
        _, plain, _ = trained("untold", kept=False, **short)
        made, seen, asked = trained("untold", **short)
        assert seen == plain and made.kept_epochs == 1 and asked == STEPS * 2 + 1
        assert not torch.is_autocast_enabled("cpu")


# -- in a study


@pytest.fixture(scope="module")
def plan(tmp_path_factory, digits):
    file = tmp_path_factory.mktemp("file") / "mine.toml"
    file.write_text(
        """
[study]
dataset = "digits"
pairs = ["r18-r18"]
methods = ["logit", "dkd"]
seeds = "0-1"
[recipe]
epochs = 3
batch_size = 8
base_width = 4
train_size = 56
val_size = 40
test_stride = 64
[teacher]
epochs = 2
[method.logit]
kd_weight = 1
[method.dkd]
tckd_weight = 1
nckd_weight = 1
temperature = 4
"""
    )
    return make_plan(load_preset(str(file)), [None], Ground(digits.name, digits.digest, "cpu"))


def key_of(plan, method, seed=0):
    (trials,) = (trials for arm, trials in plan.arms.items() if arm.method == method)
    return trials[seed]


def test_what_decides_an_answer_is_in_its_name_and_nothing_else(plan, tmp_path, monkeypatch):
    folder = StudyFolder(tmp_path).trial("a" * 16)
    (tmp_path / "answers").mkdir()
    spec = plan.trials[key_of(plan, "logit")]

    def name(spec, sha256="0" * 64):
        return kept_answers.answers_for(folder, spec, sha256).asked

    own = name(spec)
    dkd = plan.trials[key_of(plan, "dkd")]
    assert own == name(dkd) == name(dataclasses.replace(spec, arch="r34", fault="alpha-swapped"))
    others = [
        dataclasses.replace(spec, seed=1),
        dataclasses.replace(spec, threads=2),
        dataclasses.replace(spec, data_digest="d"),
        dataclasses.replace(spec, numerics=0),
        dataclasses.replace(spec, teacher_digest="t"),
        dataclasses.replace(spec, teacher=TeacherRef("r34", spec.teacher.key)),
    ]
    made = {name(other) for other in others} | {name(spec, "1" * 64)}
    for field in dataclasses.fields(Recipe):
        recipe = dataclasses.replace(spec.recipe)
        object.__setattr__(recipe, field.name, "another value")
        changed = name(dataclasses.replace(spec, recipe=recipe))
        if field.name in kept_answers._STUDENTS:
            assert changed == own, field.name
        else:
            made.add(changed)
    for word in ("device_name", "instructions", "code_digest", "versions"):
        with monkeypatch.context() as patch:
            patch.setattr(kept_answers, word, lambda *_: "another")
            made.add(name(spec))
    decisive = len(dataclasses.fields(Recipe)) - len(kept_answers._STUDENTS)
    assert own not in made and len(made) == len(others) + 1 + decisive + 4


def test_trials_read_each_others_answers_and_come_out_the_same(plan, tmp_path, cache):
    data_file = prepare_data("digits", None, cache)
    (teacher,) = plan.teachers.values()

    def run(place, key):
        folder = StudyFolder(tmp_path / place).trial(key)
        folder.write_spec(plan.trials[key.removeprefix("again-")])
        result = trial.run(folder, data_file)
        return folder, result

    run("live", teacher)
    shutil.copytree(tmp_path / "live", tmp_path / "kept")
    StudyFolder(tmp_path / "kept").answers.mkdir()
    logit, dkd = (key_of(plan, name) for name in ("logit", "dkd"))
    run("kept", logit)
    one, live = run("live", dkd)
    for key, read in ((dkd, 1), (repeat_of(dkd), None)):
        other, kept = run("kept", key)
        assert kept.times.get("kept_answers_epochs") == read and "kept_answers_epochs" not in live.times
        assert kept.status == "finished" and kept.metrics == live.metrics and kept.findings == live.findings
        for name in ("curve.jsonl", "norms.csv", "student.safetensors"):
            assert (one.path / name).read_bytes() == (other.path / name).read_bytes(), name


@pytest.mark.parametrize(("kept", "unfinished", "left"), [(True, 0, False), (True, 1, True), (False, 1, False)])
def test_a_study_has_its_folder_of_answers_until_it_is_done(
    plan, tmp_path, monkeypatch, digits, kept, unfinished, left
):
    folder, there = StudyFolder(tmp_path / "study"), []
    folder.answers.mkdir(parents=True)

    def execute(plan, found, *args, **more):
        there.append(found.answers.is_dir())
        keys = [*plan.trials]
        return Outcome(trained=keys[unfinished:], failed=keys[:unfinished])

    monkeypatch.setattr(study, "execute", execute)
    for name in ("read_study", "complete_stories", "write_grid", "write_table", "write_study"):
        monkeypatch.setattr(study, name, lambda *_: type("Trials", (), {"arms": {}, "controls": {}}))
    ready = study.Ready(plan, [*plan.trials], None, digits, tmp_path, folder, "cpu", 1, None, kept_answers=kept)
    study.carry_out(ready, lambda *_: None)
    assert there == [kept] and folder.answers.is_dir() == left


def test_what_a_dead_trial_was_writing_is_swept(tmp_path, monkeypatch):
    (tmp_path / "answers").mkdir()
    kept = Answers(tmp_path / "answers", "a")
    kept.write(0, torch.zeros(1, 2, 3))

    def cut_off(self, target):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(type(tmp_path), "replace", cut_off)
        with pytest.raises(KeyboardInterrupt):
            kept.write(1, torch.zeros(1, 2, 3))
    assert len([*(tmp_path / "answers" / "a").iterdir()]) == 2
    monkeypatch.setattr("kdbench.harness.records.temporaries.STALE", -1.0)
    assert sweep(StudyFolder(tmp_path)) == 1 and kept.read(0, 1) is not None


def test_what_is_read_costs_no_forward():
    """Two settings of Logit-KD and DKD of one seed share a teacher; Feature-KD and a fault near the teacher ask it."""
    preset = load_preset("quick")
    recipe = dataclasses.replace(preset.recipe, epochs=50)
    preset = dataclasses.replace(preset, recipe=recipe, methods=("logit", "dkd", "feature"), seeds=(0,))
    plan = make_plan(preset, [None, "missing-t-squared", "teacher-train-mode"], Ground("digits", "d", "cpu"))
    readers = cost._readers(plan, plan.trials)
    specs = {(spec.method, spec.fault): key for key, spec in plan.trials.items() if spec.teacher is not None}
    logits = [("logit", None), ("dkd", None), ("logit", "missing-t-squared")]
    assert readers < {specs[arm] for arm in logits} and len(readers) == 2
    asks, reads = (cost.trial_flop(plan.trials[specs["logit", None]], 1, reads=told) for told in (False, True))
    assert 0.5 < reads / asks < 0.8, "two fifths of a step are the teacher's"
    total = [cost.estimate(plan, plan.trials, 100, 1, CPU, kept_answers=kept).pflop for kept in (False, True)]
    assert total[1] == pytest.approx(
        total[0]
        - sum(
            cost.trial_flop(plan.trials[key], 100) - cost.trial_flop(plan.trials[key], 100, reads=True)
            for key in readers
        )
        / 1e15
    )
    plan.trials[repeat_of(specs["logit", None])] = plan.trials[specs["logit", None]]
    assert cost._readers(plan, plan.trials) == readers, "a repeat asks its teacher"
    on_gpu = make_plan(preset, [None], Ground("digits", "d", "cuda"))
    assert not cost._readers(on_gpu, on_gpu.trials)
