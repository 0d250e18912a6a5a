"""Configurations of jobs are composed once, are everyone's own, and are those that Hydra composes."""

import pickle

import pytest
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from omegaconf import OmegaConf, open_dict

from lorax.config import conf_dir, register_schema, resolve
from lorax.running.command.composing import ComposedOnce

WORDS = ["init=pissa", "rank=4", "label='a b'"]


@pytest.fixture
def hydra_s():
    """Hydra's loader, and a sweep's configuration."""
    register_schema()
    GlobalHydra.instance().clear()
    made = Hydra.create_main_hydra2("lorax", create_config_search_path(str(conf_dir())))
    master = made.config_loader.load_configuration("config", ["model=toy", "task=toy"], RunMode.MULTIRUN)
    yield made.config_loader, master
    GlobalHydra.instance().clear()


class _Counting:
    def __init__(self, loader):
        self.loader, self.asked = loader, []

    def load_sweep_config(self, master, words):
        self.asked.append(words)
        return self.loader.load_sweep_config(master, words)

    def get_sources(self):
        return "the loader's own"


def test_a_job_is_composed_once_and_every_copy_is_hydra_s(hydra_s):
    loader, master = hydra_s
    counting = _Counting(loader)
    once, expected = ComposedOnce(counting), loader.load_sweep_config(master, WORDS)
    for _ in range(3):
        got = once.load_sweep_config(master, tuple(WORDS))
        assert got == expected and OmegaConf.get_type(got) is OmegaConf.get_type(expected)
        assert resolve(got) == resolve(expected) and got.hydra.sweep.dir == expected.hydra.sweep.dir
        with open_dict(got):
            got.hydra.job.num = 7  # as launchers do
            got.init.name = "lora"
    assert counting.asked == [WORDS]
    other = once.load_sweep_config(master, [*WORDS[:1], "rank=8"])
    assert resolve(other).rank == 8 and len(counting.asked) == 2
    assert once.get_sources() == "the loader's own"


def test_what_does_not_compose_says_so_every_time_and_a_worker_gets_no_memory(hydra_s):
    loader, master = hydra_s
    once = ComposedOnce(loader)
    for _ in range(2):
        with pytest.raises(Exception, match="nosuch"):
            once.load_sweep_config(master, ["init=nosuch"])
    once.load_sweep_config(master, WORDS)
    assert once.__getstate__() == {"_loader": loader, "_composed": {}}
    assert resolve(pickle.loads(pickle.dumps(once.load_sweep_config(master, WORDS)))).rank == 4


def test_a_field_of_swept_methods_is_set_though_the_default_method_lacks_it():
    from lorax.running.command.words import hydra_words

    assert hydra_words(["-m", "init=molora,hydra_lora", "init.balance=0.01"])[2] == "++init.balance=0.01"
    assert hydra_words(["-m", "init=molora,hydra_lora", "init.balanc=0.01"])[2] == "init.balanc=0.01"  # told as before
    assert hydra_words(["-m", "init=molora", "init.balance=0,0.01"])[2] == "init.balance=0,0.01"
    assert hydra_words(["-m", "task=toy,gsm8k", "init.balance=1"])[2] == "init.balance=1"
