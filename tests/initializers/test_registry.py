import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import lorax
from lorax.errors import UserError
from lorax.initializers.registry import build, consumed, get, names
from lorax.records import knobs

CONF = Path(__file__).parents[2] / "conf" / "init"


def test_every_method_of_the_package_has_a_yaml_and_every_yaml_a_method():
    assert set(lorax.names()) == {path.stem for path in CONF.glob("*.yaml")}


@pytest.mark.parametrize("name", names())
def test_the_yaml_says_the_methods_own_defaults(name):
    data = yaml.safe_load((CONF / f"{name}.yaml").read_text())
    assert data.pop("name") == name and data.pop("lr_prior") > 0
    own = {field.name: field.default for field in dataclasses.fields(get(name))}
    assert data == {key: own[key] for key in data}
    assert set(data) == set(own) - set(knobs.METHOD)


def test_registry_and_build_need_no_torch():
    code = "import sys; from lorax.initializers.registry import build, names; [build(name) for name in names()]"
    code += "; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", names())
def test_unused_shared_fields_do_not_split_a_method(name):
    shared = dict.fromkeys(knobs.METHOD) | {"rank": 4}
    first, second = (consumed(build(name, shared=shared | {"zeta": zeta})) for zeta in (16.0, 64.0))
    assert (first == second) == ("zeta" not in {field.name for field in dataclasses.fields(get(name))})
    assert first["name"] == name and first["version"] >= 1


def test_consumed_holds_resolved_values_only():
    assert consumed(build("lora_ga"))["alpha"] == 16 and consumed(build("pissa", shared={"rank": 4}))["alpha"] == 4
    weighted = consumed(build("lora_ga", shared={"zeta_rule": "weight_svd", "zeta": 3}))
    assert "zeta" not in weighted and "gamma" not in weighted
    assert consumed(build("svft", own={"width": 1})) == consumed(build("svft", own={"width": 2}))


@pytest.mark.parametrize(
    "scaling,rank,eta", [("standard", 4, 4.0), ("rslora", 4, 8.0), ("standard", 16, 1.0), ("rslora", 16, 4.0)]
)
def test_eta(scaling, rank, eta):
    assert build("lora", shared={"rank": rank, "scaling": scaling}).eta == eta
    assert build("pissa", shared={"rank": rank}).eta == 1


BAD = [
    ("loraga", {}, "init=loraga is unknown: did you mean 'lora_ga'"),
    ("lora", {"zetta": 1}, "init=lora has no field 'zetta' .its fields: rank, alpha"),
    ("svft", {"patern": "plain"}, "did you mean 'pattern'"),
    ("none", {"rank": 1}, "its fields: none"),
    ("lora", {"rank": -1}, "rank=-1: a positive whole number"),
    ("lora", {"rank": "eight"}, "rank=eight"),
    ("lora", {"rank": True}, "rank=True"),
    ("lora", {"alpha": float("nan")}, "alpha=nan"),
    ("lora", {"scaling": "rslorra"}, "scaling=rslorra is unknown: did you mean 'rslora'"),
    ("lora", {"distribution": "gauss"}, "did you mean 'gaussian'"),
    ("lora_ga", {"zeta": 1, "gamma": 1}, "zeta=1 and gamma=1"),
    ("lora_ga", {"gamma": 1, "zeta_rule": "backward"}, "gamma=1 is the forward rule's"),
    ("lora_ga", {"zeta": 0}, "zeta=0: a finite number above 0"),
    ("lora_ga", {"direction": "ArB3r"}, "direction=ArB3r is unknown: did you mean"),
    ("pissa", {"svd": "fast"}, "svd=fast"),
    ("lora_xs", {"noise": -1}, "noise=-1"),
    ("svft", {"width": 1.5}, "width=1.5"),
    ("svf", {"param": "sigmoyd"}, "param=sigmoyd is unknown: did you mean 'sigmoid'"),
    ("svf", {"param": "sigmoid"}, "param=sigmoid needs normalise=true"),
    ("svf", {"noise": float("inf")}, "noise=inf"),
    ("svf", {"normalise": "yes"}, "init.normalise=yes: must be true or false"),
    ("miss", {"rank": 0}, "rank=0: a positive whole number"),
    ("miss", {"alpha": 1.0}, "init=miss has no field 'alpha'"),
    ("lora_fa", {"projected": 2}, "init.projected=2: must be true or false"),
    ("lora_one", {"gamma": -1.0}, "gamma=-1.0"),
    ("lora_sb", {"step": 0}, "step=0: a finite number above 0"),
    ("corda", {"mode": "imp"}, "mode=imp is unknown: did you mean 'ipm'"),
    ("corda", {"damping": 0.0}, "damping=0.0"),
    ("dora", {"distribution": "gauss"}, "did you mean 'gaussian'"),
    ("vera", {"rank": 2.5}, "rank=2.5"),
    ("vera", {"key": -1}, "key=-1: a whole number of at least 0"),
    ("vera", {"d_initial": "x"}, "d_initial=x"),
]


@pytest.mark.parametrize("name,own,line", BAD)
def test_bad_input_is_one_clear_line(name, own, line):
    with pytest.raises(UserError, match=line) as caught:
        build(name, own=own)
    assert "\n" not in str(caught.value)


def test_lora_ga_warns_where_its_output_grows_with_the_rank():
    with pytest.warns(UserWarning, match="grows with the rank"):
        build("lora_ga", shared={"scaling": "standard"})


def test_a_name_is_given_once():
    with pytest.raises(UserError, match="init=lora is taken by lorax.initializers.lora.LoRA"):
        lorax.register("lora")(type("Other", (), {}))
