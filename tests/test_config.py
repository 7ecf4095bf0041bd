"""Reading configs: extends, merging, overrides, fractions, and what is said about mistakes."""

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from expressive_losses.config import Config, Radius, differences, load, merge, parse_assignment
from expressive_losses.errors import UserError
from expressive_losses.registry import LOSSES, Registry


def write(folder, name, text):
    path = folder / name
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    "method, attack",
    [
        ("mtl_ibp", {"name": "pgd", "steps": 1, "step_size": 10.0}),
        ("trades", {"name": "pgd", "steps": 10, "step_size": 0.25, "objective": "kl"}),
        ("adversarial", {"name": "pgd", "steps": 7, "step_size": 0.25}),
        ("adv_ibp", {"name": "fgsm", "step_size": 1.25}),
        ("adv_crown_ibp", {"name": "fgsm", "step_size": 1.25}),
    ],
)
def test_a_method_by_name_has_its_papers_attack_unless_the_config_says_otherwise(method, attack):
    by_name = load(None, [{"method": method}]).attack
    assert {key: getattr(by_name, key) for key in attack} == attack
    assert load(None, [{"method": method}, {"attack": {"name": "pgd", "steps": 3}}]).attack.steps == 3
    assert load(None, [{"method": method, "attack": {"random_start": False}}]).attack.random_start is False


def test_defaults_are_complete_and_rebuild_themselves():
    config = load(None)
    assert Config.build(config.resolved()) == config
    assert Config.build(yaml.safe_load(yaml.safe_dump(config.resolved()))) == config


def test_extends_merges_key_by_key(tmp_path):
    write(
        tmp_path, "base.yaml", "eps: {target: 8/255, schedule: {name: smoothed, length: 80}}\ntraining: {epochs: 160}\n"
    )
    child = write(
        tmp_path, "child.yaml", "extends: base.yaml\neps: {schedule: {warmup: 1}}\nmethod: {name: sabr, alpha: 0.4}\n"
    )
    config = load(child)
    assert float(config.eps.target) == 8 / 255
    assert config.eps.schedule.length == 80
    assert config.eps.schedule.warmup == 1
    assert config.training.epochs == 160
    assert config.method.alpha == 0.4


def test_another_plugin_replaces_and_the_same_merges():
    base = {"method": {"name": "mtl_ibp", "alpha": 0.2}}
    assert merge(base, {"method": {"name": "ibp"}})["method"] == {"name": "ibp"}
    assert merge(base, {"method": "ibp"})["method"] == {"name": "ibp"}
    assert merge(base, {"method": {"alpha": 0.3}})["method"] == {"name": "mtl_ibp", "alpha": 0.3}
    assert merge({"bn": "clean"}, {"bn": "clean"})["bn"] == "clean"


@pytest.mark.parametrize(
    ("text", "number"), [("8/255", 8 / 255), ("0.1", 0.1), ("1e-3", 1e-3), (" 2 / 255", 2 / 255), ("0", 0.0)]
)
def test_radii_keep_their_text(text, number):
    radius = Radius.parse(text)
    assert float(radius) == number
    assert radius.text == text.strip()
    assert Radius.parse(radius).text == radius.text


@given(st.floats(0, 1), st.booleans())
def test_radius_of_any_number_in_range(value, as_text):
    assert float(Radius.parse(repr(value) if as_text else value)) == value


@pytest.mark.parametrize(
    ("text", "message"),
    [("8", "did you mean 8/255"), ("-0.1", "from 0 to 1"), ("nan", "from 0 to 1"), ("inf", "from 0 to 1"),
     ("1/0", "expected a number or a fraction"), ("eight", "expected a number or a fraction"), ("1/2/3",
     "expected a number")],
)  # fmt: skip
def test_bad_radii(text, message):
    with pytest.raises(UserError, match=f"eps.target: .*{message}"):
        load(None, [{"eps": {"target": text}}])


@pytest.mark.parametrize(
    ("method", "attack", "message"),
    [
        ("trades", {"step": 2}, "'steps'? ('pgd' is the choice of method 'trades'; attack.name=... takes another)"),
        (
            "adv_ibp",
            {"steps": 2},
            "'step_size'? ('fgsm' is the choice of method 'adv_ibp'; attack.name=... takes another)",
        ),
        ("trades", {"name": "pgd", "step": 2}, "'steps'?"),
        ("mtl_ibp", {"step": 2}, "'steps'?"),
        ("trades", [1], "got [1]"),
        ("trades", None, "got None"),
    ],
)
def test_a_mistake_in_an_attack_that_the_method_chose_says_so(method, attack, message):
    with pytest.raises(UserError) as error:
        load(None, [{"method": {"name": method}, "attack": attack}])
    assert str(error.value).endswith(message)


def test_a_leading_zero_makes_no_octal_number():
    assert load(None, [parse_assignment("training.epochs=010")]).training.epochs == 10
    whole = ("eps.target=1.0", "eps.train_multiplier=1")
    assert load(None, [parse_assignment(text) for text in whole]).eps.target == 1


def test_numbers_in_scientific_notation_are_numbers():
    """PyYAML reads 5e-4 (without a dot) as text."""
    assert load(None, [parse_assignment("optimizer.lr=5e-4")]).optimizer.lr == 5e-4


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("methd.name=ibp", "unknown key 'methd'; did you mean 'method'"),
        ("training.epoch=3", "unknown key 'training.epoch'; did you mean 'epochs'"),
        ("training.epochs=three", "training.epochs"),
        ("training.epochs=0", "training.epochs"),
        ("training.epochs=1:30", "training.epochs: "),
        ("eps=8/255", "eps: expected keys of its own (target, "),
        ("eps=0.2", "eps: expected keys of its own (target, "),
        ("plugins=my_loss", "plugins: expected a list in square brackets, got 'my_loss'"),
        ("data.mean=0.5", "mean: expected a list in square brackets, got 0.5"),
        ("training.average=ema", "training.average: expected keys of its own ("),
        ("eps.target=1", "eps.target: 1 is the whole range of pixels; did you mean 1/255?"),
        ("training.epochs=yes", "training.epochs: expected a number, got true"),
        ("training.clip_norm=off", "training.clip_norm: expected a number, got false"),
        ("method.alpha=true", "alpha: expected a number, got true"),
        ("training.batch_size=1", "training.batch_size"),
        ("training.bn_statistics=advesarial", "training.bn_statistics"),
        ("method.alpha=1.5", "alpha"),
        ("method.name=mtl", "unknown method 'mtl'"),
        ("optimizer.lr=-1", "lr"),
        ("optimizer.lr=.nan", "lr"),
        ("eps.schedule.name=smooth", "did you mean 'smoothed'"),
        ("eps.train_multiplier=20", "above 1"),
        ("lr_schedule={name: multistep, milestones: [90]}", "milestone 90 is not before the end"),
        ("plugins=[no_such_module_here]", "no_such_module_here"),
        ("data.name=mnsit", "did you mean 'mnist'"),
        ("model=nowhere.at.all:factory", "nowhere"),
        ("attack.steps=0", "steps"),
    ],
)  # fmt: skip
def test_mistakes_are_named(assignment, message):
    with pytest.raises(UserError) as caught:
        config = load(None, [parse_assignment(assignment)])
        config.model.build((1, 8, 8), 10)  # import paths are followed when the network is built
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["epochs", "=3", "a..b=1", ".a=1", "a=[1", ""])
def test_bad_assignments(text):
    with pytest.raises(UserError, match="--set"):
        parse_assignment(text)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(UserError, match="cannot read the config"):
        load(tmp_path / "missing.yaml")
    with pytest.raises(UserError, match="not valid YAML"):
        load(write(tmp_path, "broken.yaml", "a: [1"))
    with pytest.raises(UserError, match="expected a mapping"):
        load(write(tmp_path, "list.yaml", "- 1"))
    with pytest.raises(UserError, match="circle"):
        write(tmp_path, "a.yaml", "extends: b.yaml")
        load(write(tmp_path, "b.yaml", "extends: a.yaml"))
    with pytest.raises(UserError, match="not valid YAML"):  # no code is ever built from a config
        load(write(tmp_path, "code.yaml", "a: !!python/object/apply:os.getcwd []"))


json_like = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(st.sampled_from([*Config.model_fields, "other"]), json_like, max_size=3))
def test_any_mapping_is_a_config_or_a_user_error(values):
    values.pop("plugins", None)  # would import what it names
    try:
        config = Config.build(values)
    except UserError as error:
        assert str(error)
    else:
        assert Config.build(config.resolved()) == config


def test_a_fingerprint_is_of_what_was_asked_for(tmp_path):
    """Defaults written out and published figures change nothing; every value does, also 2/255 beside its decimals."""
    plain = load(None, [{"attack": {"name": "pgd", "steps": 3}}])
    full = load(None, [plain.resolved(), {"paper": {"natural": 90.0}}])
    assert full.fingerprint() == plain.fingerprint()
    assert Config.build(yaml.safe_load(yaml.safe_dump(plain.resolved()))).fingerprint() == plain.fingerprint()
    changes = [
        *("attack.steps=4", "attack={name: fgsm}", "eps.target=0.2", "eps.target=2/255", "eps.target=0.00784313725"),
        *("eps.schedule.warmup=0.01", "training.seed=1", "training.l1=1e-6", "model.width=3", "method.alpha=0.3"),
    ]
    found = [load(None, [plain.resolved(), parse_assignment(change)]).fingerprint() for change in changes]
    assert len({*found, plain.fingerprint()}) == len(changes) + 1


def test_plug_ins_and_radii_in_a_tuple_count():
    from expressive_losses.config import _asked
    from expressive_losses.registry import ATTACKS

    several = [[ATTACKS.build(name)] for name in ("none", "fgsm", "pgd")] + [[Radius.parse("8/255")], [8 / 255]]
    assert len({str(_asked(value)) for value in (*several, {"a": several[0]}, {"a": several[1]})}) == 7


def test_a_field_that_is_new_leaves_fingerprints_as_they_were(monkeypatch):
    from expressive_losses.attacks.pgd import Pgd

    before = load(None, [{"attack": {"name": "pgd", "steps": 3}}])
    known = {name: field for name, field in Pgd.model_fields.items() if name != "decay_at"}
    monkeypatch.setattr(Pgd, "__pydantic_fields__", known)
    assert "decay_at" not in Pgd.model_fields
    assert load(None, [{"attack": {"name": "pgd", "steps": 3}}]).fingerprint() == before.fingerprint()


def test_a_radius_of_1_in_a_file_of_an_earlier_run_is_1():
    """Only who types it is asked."""
    with pytest.raises(ValueError, match="did you mean 1/255"):
        Radius.parse("1")
    assert Radius.recorded("1") == 1
    config = load(None, [parse_assignment(text) for text in ("eps.target=1.0", "eps.train_multiplier=1")])
    values = config.resolved()
    values["eps"]["target"] = "1"
    assert differences(config, values) == []


def test_a_plug_in_does_not_take_a_name_that_there_is():
    """A copy of a loss of the package, its class's name included, would be trained in its place, under its name."""
    copied = type(
        "MtlIbp", (LOSSES["mtl_ibp"],), {"__qualname__": LOSSES["mtl_ibp"].__qualname__, "__module__": "mine"}
    )
    with pytest.raises(UserError, match=r"method 'mtl_ibp' is registered twice: by expressive_losses.* and mine"):
        LOSSES.register("mtl_ibp")(copied)
    registry = Registry("loss", "expressive_losses.losses")
    registry.register("mtl_ibp")(copied)
    with pytest.raises(UserError, match=r"registered twice: by mine and expressive_losses"):  # imported before them
        registry.register("mtl_ibp")(LOSSES["mtl_ibp"])
    registry.register("of_mine")(copied)
    again = type("MtlIbp", (copied,), {"__qualname__": copied.__qualname__, "__module__": "package.mine"})
    assert registry.register("of_mine")(again) is again, "imported once more, by another path"
