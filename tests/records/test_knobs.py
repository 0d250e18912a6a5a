"""The one list of a run's keys: complete, without overlap, and what initialisers and the schema say."""

from dataclasses import MISSING, fields

from lorax.config import RunConfig, Train
from lorax.initializers.registry import get, names
from lorax.records import knobs

BY_READER = [
    knobs.METHOD, knobs.EVERY_RUN, knobs.TRAINING, knobs.ADAPTERS, knobs.RULES, knobs.GROUP, knobs.CALIBRATION,
    knobs.DIAGNOSTICS, knobs.BOOKKEEPING, knobs.OBJECTIVE,
]  # fmt: skip


def test_every_key_of_a_run_has_one_reader():
    listed = [key for keys in BY_READER for key in keys]
    assert sorted([*listed, "init", "train", "reinforce"]) == sorted(item.name for item in fields(RunConfig))
    train = {item.name for item in fields(Train)}
    assert {*knobs.TRAIN_BOOKKEEPING, *knobs.TRAIN_CALIBRATION, *knobs.TRAIN_WHERE_SET} < train


def test_method_keys_are_the_fields_that_initialisers_share_with_a_run():
    keys = {item.name for item in fields(RunConfig)}
    shared = {field.name for name in names() for field in fields(get(name))} & keys
    assert shared == set(knobs.METHOD)


def test_keys_with_a_default_of_the_method_s_own_are_unset_in_a_run():
    defaults = {item.name: item.default for item in fields(RunConfig) if item.default is not MISSING}
    assert [key for key in knobs.METHOD if defaults[key] is None] == list(knobs.METHOD_DEFAULTS)


def test_factors_are_the_numbers_among_them():
    types = {item.name: item.type for item in fields(RunConfig)}
    assert tuple(key for key in knobs.METHOD_DEFAULTS if types[key] == "float | None") == knobs.FACTORS
