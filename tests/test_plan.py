"""From presets and options to trials: each training once, teachers shared, everything checked."""

import dataclasses
from importlib import resources

import pytest

from kdbench.harness.plan.outline import PRESETS, parse_seeds
from kdbench.harness.plan.plan import Arm, Ground, make_plan
from kdbench.harness.plan.preset import load_preset, parse_preset, split_pair
from kdbench.harness.plan.variants import VARIANTS
from kdbench.harness.records.spec import Spec
from kdbench.kd.errors import InputError
from kdbench.kd.recipe import Recipe

GROUND = Ground("digits", "d" * 64, "cpu")
BOTH = VARIANTS["both"]


def test_quick_lays_out_each_training_once():
    plan = make_plan(load_preset("quick"), BOTH, GROUND)
    assert len(plan.trials) == 29 and len(plan.teachers) == 2
    assert set(plan.arms) == {
        *(Arm(None, "r34-r18", m) for m in ("baseline", "logit", "feature")),
        *(Arm("imagenet-stem", "r34-r18", m) for m in ("baseline", "logit", "feature")),
        *(Arm("random-teacher", "r34-r18", m) for m in ("logit", "feature")),
        Arm("projector-unclipped", "r34-r18", "feature"),
    }
    assert {fault for fault, _, _ in plan.skipped} == {"projector-unclipped", "random-teacher"}


def test_all_students_of_a_pair_share_one_teacher_and_the_stem_has_its_own():
    plan = make_plan(load_preset("quick"), BOTH, GROUND)
    for arm, by_seed in plan.arms.items():
        teachers = {plan.needs(key) for key in by_seed.values()}
        if arm.method == "baseline":
            assert teachers == {None}
        else:
            its = "imagenet-stem" if arm.fault == "imagenet-stem" else None
            assert teachers == {plan.teachers["r34", its]}
    assert plan.trials[plan.teachers["r34", None]].seed == 0


def test_pairs_share_baselines_and_teachers():
    preset = dataclasses.replace(load_preset("paper"), seeds=(0, 1))
    plan = make_plan(preset, [None], dataclasses.replace(GROUND, device="cuda"))
    baselines = {key for arm, by_seed in plan.arms.items() if arm.method == "baseline" for key in by_seed.values()}
    assert len(baselines) == 4  # r18 and r34, two seeds
    assert set(plan.teachers) == {("r34", None), ("r50", None), ("r101", None)}
    assert all(plan.trials[k].recipe.epochs == 200 for k in plan.teachers.values())


def test_the_papers_best_settings_go_by_pair():
    preset = load_preset("paper")
    found = {
        (pair, method): (s.kd_weight, s.ce_weight, s.temperature if method == "logit" else None)
        for pair in preset.pairs
        for method in ("logit", "feature")
        for s in (preset.settings(pair, method),)
    }
    assert found == {
        ("r34-r18", "logit"): (0.7, 0.3, 2),
        ("r34-r18", "feature"): (0.7, 0.3, None),
        ("r50-r18", "logit"): (0.5, 0.5, 4),
        ("r50-r18", "feature"): (0.7, 0.3, None),
        ("r50-r34", "logit"): (0.3, 0.7, 3),
        ("r50-r34", "feature"): (0.5, 0.5, None),
        ("r101-r34", "logit"): (0.7, 0.3, 2),
        ("r101-r34", "feature"): (0.3, 0.7, None),
    }


def test_the_presets_of_the_tables_have_their_schedule_and_their_pairs():
    """Tian et al. 2020: 0.1 after 150, 180 and 210 of 240 epochs; seven pairs of one family, six of two."""
    from kdbench.kd.models import MODELS
    from kdbench.kd.procedure import learning_rate

    like, slim = load_preset("cifar100-crd"), load_preset("cifar100-slim")
    assert len(like.pairs) == 8 and len(slim.pairs) == 5 and {*like.methods} == {*slim.methods} >= {"crd", "dkd", "at"}
    for preset, lr in ((like, 0.05), (slim, 0.01)):
        rates = [learning_rate(preset.recipe, 100 * epoch, 100) for epoch in (0, 149, 150, 179, 180, 210, 239)]
        assert rates == pytest.approx([lr, lr, lr / 10, lr / 10, lr / 100, lr / 1000, lr / 1000])
        assert preset.teacher_recipe.lr == 0.05 and not preset.recipe.nesterov
        assert all(part in MODELS for pair in preset.pairs for part in pair.split("-"))
    assert like.settings("resnet56-resnet20", "dkd").nckd_weight == 2


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ({"schedule": "drops"}, 'schedule = "drops" goes with drops'),
        ({"drops": "3"}, 'schedule = "drops" goes with drops'),
        ({"schedule": "drops", "drops": "3; 4"}, "write epochs"),
        ({"schedule": "drops", "drops": "30, 20"}, "they rise, and lie between 0 and 100 epochs"),
        ({"schedule": "drops", "drops": "30, 100"}, "they rise, and lie between 0 and 100 epochs"),
    ],
)
def test_drops_that_cannot_be_are_refused(words, says):
    with pytest.raises(InputError, match=says):
        Recipe(**words)


def test_what_came_to_a_recipe_later_is_no_part_of_a_key_at_its_default():
    later = {"drops", "nesterov", "distil_until"}
    assert not later & {*Recipe().decisive()}
    assert later <= {*Recipe(schedule="drops", drops="50", nesterov=False, distil_until=0.5).decisive()}


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_read_strictly_and_weights_sum_as_declared(name):
    preset = load_preset(name)
    for pair in preset.pairs:
        logit = preset.settings(pair, "logit")
        assert logit.ce_weight + logit.kd_weight == pytest.approx(1)


def text_of(name):
    return (resources.files("kdbench.harness.presets") / f"{name}.toml").read_text()


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("epochs = 15", "epoch = 15", r"quick, \[recipe\]: unknown key 'epoch'; did you mean 'epochs'"),
        ("[decision]", "[decisions]", r"unknown key 'decisions'; did you mean 'decision'"),
        ("margin_pp", "margin", r"\[decision\]: unknown key 'margin'; did you mean 'margin_pp'"),
        (
            "temperature = 4",
            "temprature = 4",
            r"unknown key 'temprature'; did you mean 'temperature'",
        ),
        ("[method.logit]", "[method.logits]", "unknown method 'logits'; did you mean 'logit'"),
        ('seeds = "0-2"', 'seeds = "0..2"', "are no range"),
        ("pairs =", "pares =", r"\[study\]: unknown key 'pares'; did you mean 'pairs'"),
        ('dataset = "digits"\n', "", "dataset is missing"),
        ("epochs = 15", "epochs = ", "cannot be read as TOML"),
        ("epochs = 15", 'epochs = "many"', "quick, recipe: epochs is 'many'; it must be of type int"),
        ("epochs = 15", "epochs = 1.5", "epochs is 1.5; it must be of type int"),
        ("epochs = 40", "epochs = true", "epochs is True; it must be of type int"),
        ("flip = false", "flip = 0", "flip is 0; it must be of type bool"),
        ('schedule = "step"', 'schedule = "steps"', "unknown schedule 'steps'; did you mean 'step'"),
        ("temperature = 4", 'temperature = "4"', "temperature is '4'; it must be of type float"),
        ("temperature = 4", "temperature = 0", "temperature is 0.0; it must be positive"),
        ('pairs = ["r34-r18"]', 'pairs = "r34-r18"', "pairs is 'r34-r18'; it must be a list of names"),
        ("[decision]", "[method]\nlogit = 3\n[decision]", "as TOML|stands where a table belongs"),
        ("[study]", "study = 3\n[x]", "unknown key 'x'|stands where a table belongs"),
        ("margin_pp = 0.5", "margin_pp = 0", "must be positive"),
    ],
)
def test_a_slip_in_a_preset_is_named(old, new, says):
    text = text_of("quick")
    assert old in text
    with pytest.raises(InputError, match=says):
        parse_preset("quick", text.replace(old, new))


@pytest.mark.parametrize(
    ("text", "seeds"), [("0-2", (0, 1, 2)), ("3", (3,)), ("0,3,5-6", (0, 3, 5, 6)), ("2,0-1,1", (0, 1, 2))]
)
def test_seeds(text, seeds):
    assert parse_seeds(text) == seeds


@pytest.mark.parametrize("text", ["", "a", "2-0", "-1", "0-", "1.5", "0-99999"])
def test_seeds_that_are_no_range(text):
    with pytest.raises(InputError, match="seeds"):
        parse_seeds(text)


@pytest.mark.parametrize(("pair", "strange"), [("r50-r19", "r19"), ("r50-r18-r81", "r81"), ("r19-r50", "r19")])
def test_the_unknown_network_of_a_pair_is_named(pair, strange):
    with pytest.raises(InputError, match=f"pair {pair}: unknown network '{strange}'; did you mean 'r18'"):
        split_pair(pair)


@pytest.mark.parametrize("pair", ["r50", "r19-r81", "r18/r50", ""])
def test_unknown_pairs(pair):
    with pytest.raises(InputError, match="unknown pair"):
        split_pair(pair)


def test_whole_and_broken_numbers_are_one_setting():
    text = text_of("quick")
    specs = [
        make_plan(parse_preset("quick", t), [None], GROUND).trials.keys()
        for t in (text, text.replace("temperature = 4", "temperature = 4.0"))
    ]
    assert specs[0] == specs[1]


def test_two_folders_of_one_name_are_two_studies():
    preset = load_preset("quick")
    names = {make_plan(preset, [None], Ground("folder-pets", digest, "cpu")).study for digest in ("a", "b")}
    assert len(names) == 2


def test_a_named_fault_that_applies_nowhere_is_an_error():
    preset = dataclasses.replace(load_preset("quick"), methods=("logit",))
    with pytest.raises(InputError, match="logit has no projectors"):
        make_plan(preset, ["projector-unclipped"], GROUND, named_fault=True)
    with pytest.raises(InputError, match="logit has no projectors"):
        make_plan(preset, ["projector-unclipped"], GROUND)
    assert make_plan(preset, [None, "projector-unclipped"], GROUND).skipped


def test_a_teacher_that_was_brought_along_trains_none():
    ground = dataclasses.replace(GROUND, teacher_sha256="ab" * 32)
    plan = make_plan(load_preset("quick"), BOTH, ground)
    assert not plan.teachers
    assert {s.teacher.key for s in plan.trials.values() if s.teacher} == {f"sha256:{'ab' * 32}"}
    assert ("imagenet-stem", "logit") in {(f, m) for f, m, _ in plan.skipped}
    assert Arm("imagenet-stem", "r34-r18", "baseline") in plan.arms


def test_what_options_change_gives_the_study_another_name():
    quick = load_preset("quick")
    shorter = dataclasses.replace(quick, recipe=dataclasses.replace(quick.recipe, epochs=2))
    teacher = dataclasses.replace(quick, teacher={"epochs": 2})
    seeds = dataclasses.replace(quick, seeds=(7,))
    names = [make_plan(p, [None], GROUND).study for p in (quick, shorter, teacher, seeds)]
    assert names[0] == names[3] == "quick-digits"
    assert len(set(names)) == 3


def test_a_spec_survives_its_json_and_its_key_holds_everything():
    plan = make_plan(load_preset("quick"), BOTH, GROUND)
    for key, spec in plan.trials.items():
        again = Spec.from_json(spec.to_json())
        assert again == spec and again.key == key
    spec = next(s for s in plan.trials.values() if s.teacher)
    for change in (
        {"seed": 9},
        {"threads": 2},
        {"data_digest": "e"},
        {"fault": "x"},
        {"numerics": 99},
        {"teacher": None},
    ):
        assert dataclasses.replace(spec, **change).key != spec.key
        assert set(spec.differences(dataclasses.replace(spec, **change)))


@pytest.mark.parametrize("spoil", ['"seed"', '"epochs"', "{"])
def test_a_spec_with_something_missing_is_refused(spoil):
    text = next(iter(make_plan(load_preset("quick"), [None], GROUND).trials.values())).to_json()
    with pytest.raises(InputError, match="not a trial's spec"):
        Spec.from_json(text.replace(spoil, '"zeed"', 1) if spoil != "{" else text[1:])
