"""What is wrong with a command line is said in its own words, in one line."""

from __future__ import annotations

import pytest

from dtrain import compose as configs
from dtrain.config import ConfigError
from dtrain.evaluate.stored import _overridden
from launch.points import expand
from launch.settings import read_settings

# Of pydantic, Hydra, OmegaConf, ANTLR and Python.
INTERNAL = (
    "For further information", "input_value", "type=", "unable to parse", "valid tuple", "instance of", "<class",
    "after validation", "search path", "provider=", "full_key", "object_type", "See https", "--multirun", "EOF",
    "BRACKET_OPEN", "LexerNoViable", "NoneType", "None", "<unicode", "is not Optional",
)  # fmt: skip


def plain(error: pytest.ExceptionInfo[ConfigError]) -> str:
    said = str(error.value)
    assert "\n" not in said and not [words for words in INTERNAL if words in said], said
    return said


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ("seed=x", "seed='x': input should be an integer"),
        ("seed=null", "seed=null: input should be an integer"),
        ("run.root=5", "run.root=5: input should be a path"),
        ("data.image_shape=5", "data.image_shape=5: input should be a list, [a, b]"),
        ("data.flip=maybe", "data.flip='maybe': input should be true or false"),
        ("optim=5", "optim=5: input should be keys with values, {a: 1}"),
        ("optim.groups.level1=5", "optim.groups.level1=5: input should be keys with values, {a: 1}"),
        ("model.levels=[]", "model.levels=[]: input should be of length 1 at least"),
        ("model.levels=[1]", "model.levels.0=1: input should be keys with values, {a: 1}"),
        ("trainer.max_steps=[1]", "trainer.max_steps=[1]: input should be an integer or keys with values, {a: 1}"),
        ("trainer.max_steps={a: -1}", "trainer.max_steps.a=-1: input should be greater than or equal to 0"),
        ("trainer.evaluate_every=x", "trainer.evaluate_every='x': input should be an integer or 'epoch'"),
        ("trainer.batch_size=0 seed=x", "seed='x': input should be an integer; trainer.batch_size=0: input should"),
        ("data=null", "data=null: there is no data/null; allowed: celeba, celeba128"),
        ("loader=5", "loader=5: there is no loader/5; allowed: dali, ffcv, resident"),
        ("experiment=nope", "experiment=nope: there is no experiment/nope; allowed: aae_cifar10"),
        ("seed=${nope}", "seed: Interpolation key 'nope' not found"),
        ("seed=1,2", "seed=1,2: several values are a sweep: dtrain-sweep -m"),
        ("seed=range(0,3)", "seed=range(0,3): several values are a sweep: dtrain-sweep -m"),
        ("seed", "Error parsing override 'seed'; it is not of the form key=value"),
        ("seed=[", "no viable alternative at input '['"),
    ],
)
def test_of_a_run(overrides: str, said: str) -> None:
    words = [overrides] if "{" in overrides else overrides.split()
    with pytest.raises(ConfigError) as error:
        configs.read(configs.compose(words))
    assert plain(error).startswith(said)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("launcher.foo=1", "launcher.foo=1: unknown key; allowed: account"),
        ("launcher.timeout_min=null", "launcher.timeout_min=null: it may not be null"),
        ("launcher.additional_parameters.a b=5", "cannot be read: launcher.additional_parameters.a b=5"),
        ("launcher", "Error parsing override 'launcher'; it is not of the form key=value"),
        ("sweep.parallel=x", "sweep.parallel=x: Value 'x' of type 'str' could not be converted to Integer"),
    ],
)
def test_of_the_launcher(override: str, said: str) -> None:
    with pytest.raises(ConfigError) as error:
        read_settings([override])
    assert plain(error).startswith(said)


def test_of_a_grid_and_of_an_evaluation() -> None:
    for override, said in (
        ("seed=1,,2", "Error parsing override 'seed=1,,2'; extraneous input ','"),
        ("lambda=nope", "lambda=nope: there is no lambda/nope; allowed: grid"),
    ):
        with pytest.raises(ConfigError) as error:
            expand([override])
        assert plain(error) == said
    cfg = configs.compose([])
    for override, said in (
        ("evaluate.strengths=[", "evaluate.strengths=[: is no YAML value"),
        ("evaluate.samples=", "evaluate.samples=null: input should be an integer"),
        ("evaluate.manipulate=[a,[b]]", "evaluate.manipulate.1=['b']: input should be text"),
    ):
        with pytest.raises(ConfigError) as error:
            configs.read(_overridden(cfg.copy(), [override]))
        assert plain(error) == said
