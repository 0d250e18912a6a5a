"""A card for each worker, on made-up listings of cards: what workers find in their environment."""

from __future__ import annotations

import os

import pytest

from hydra_plugins.lorax.launcher import PackedLauncher
from lorax.errors import UserError
from lorax.running.launchers import cards
from lorax.running.launchers.cards import check_devices, choose, pinned, shared_line, visible
from lorax.running.launchers.workers import train_packs

FOUR = ["0", "1", "2", "3"]


@pytest.mark.parametrize(
    ("environment", "count", "rocm", "expected"),
    [
        ({}, 4, False, FOUR),
        ({}, 0, False, []),
        ({"CUDA_VISIBLE_DEVICES": "4,6"}, 2, False, ["4", "6"]),
        ({"CUDA_VISIBLE_DEVICES": " 6, 4 "}, 2, False, ["6", "4"]),
        ({"CUDA_VISIBLE_DEVICES": ""}, 0, False, []),
        ({"CUDA_VISIBLE_DEVICES": "2,-1,3"}, 1, False, ["2"]),
        ({"CUDA_VISIBLE_DEVICES": "NoDevFiles"}, 0, False, []),
        ({"CUDA_VISIBLE_DEVICES": "0,1,9"}, 2, False, ["0", "1"]),
        ({"CUDA_VISIBLE_DEVICES": "GPU-8f2a,GPU-11c0"}, 2, False, ["GPU-8f2a", "GPU-11c0"]),
        ({"CUDA_VISIBLE_DEVICES": "MIG-a1,MIG-b2,MIG-c3"}, 1, False, ["MIG-a1", "MIG-b2", "MIG-c3"]),
        ({"HIP_VISIBLE_DEVICES": "1,2"}, 2, True, ["1", "2"]),
        ({"HIP_VISIBLE_DEVICES": "1,2"}, 4, False, FOUR),
        ({"CUDA_VISIBLE_DEVICES": "3"}, 1, True, ["3"]),
    ],
)
def test_what_is_visible_is_what_the_variable_names(environment, count, rocm, expected):
    assert visible(environment, count, rocm) == expected


@pytest.mark.parametrize(
    ("wanted", "there", "expected"),
    [
        ("auto", FOUR, FOUR),
        ("auto", [], []),
        (2, FOUR, ["0", "1"]),
        ([0, 2], FOUR, ["0", "2"]),
        ([1, 0], ["4", "6"], ["6", "4"]),  # places among the visible ones, as in cuda:1
        (["MIG-b2"], ["MIG-a1", "MIG-b2"], ["MIG-b2"]),
        ("GPU-8f2a", ["GPU-8f2a"], ["GPU-8f2a"]),
        (["1"], FOUR, ["1"]),
    ],
)
def test_cards_are_chosen_among_those(wanted, there, expected):
    assert choose(wanted, there) == expected


@pytest.mark.parametrize(
    ("wanted", "there", "says"),
    [
        (5, FOUR, "gpus=5: must be from 1 to the cards of this machine; 4 visible (0, 1, 2, 3)"),
        (0, FOUR, "gpus=0"),
        (1, [], "none is visible"),
        ([0, 4], FOUR, "no card 4; 4 visible"),
        ([0, -1], FOUR, "no card -1"),
        ([1, 1], FOUR, "names a card twice"),
        ([], FOUR, "names no card"),
        ("all", FOUR, "gpus=all: 'auto', a number"),
        (True, FOUR, "gpus=True"),
        (["MIG-x"], ["MIG-a1"], "no card MIG-x"),
        (1.5, FOUR, "gpus=1.5"),
    ],
)
def test_what_is_not_there_is_refused_in_one_line(wanted, there, says):
    with pytest.raises(UserError) as error:
        choose(wanted, there)
    assert says in str(error.value) and "\n" not in str(error.value)


def test_a_pin_is_the_variable_of_the_card_s_maker():
    assert pinned("3", {}) == {"CUDA_VISIBLE_DEVICES": "3"}
    assert pinned("3", {}, rocm=True) == {"HIP_VISIBLE_DEVICES": "3"}
    both = pinned("3", {"CUDA_VISIBLE_DEVICES": "0,3"}, rocm=True)  # torch refuses two that differ
    assert both == {"HIP_VISIBLE_DEVICES": "3", "CUDA_VISIBLE_DEVICES": "3"}


def test_workers_that_share_a_card_are_said():
    assert shared_line(2, ["0", "1"]) is None and shared_line(1, ["0", "1"]) is None
    assert shared_line(5, ["0", "1"]) == "5 workers on 2 card(s) in turn: a card holds up to 3"


def seen(configs, overrides):
    """Stands for training in a worker: says which card it sees, and which process it is; `doomed` ends its worker."""
    if configs == ["doomed"]:
        os._exit(9)
    return [{"card": os.environ.get("CUDA_VISIBLE_DEVICES"), "pid": os.getpid()} for _ in configs]


@pytest.mark.slow
def test_each_worker_sees_its_card_and_a_successor_that_of_the_dead(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    packs = [([name], [[]]) for name in ["a", "b", "doomed", "c", "d", "e", "f"]]
    results = train_packs(packs, 2, seen, [pinned("4", os.environ), pinned("6", os.environ)])
    of_process = {}
    for result in results:
        if "pid" in result:
            of_process.setdefault(result["pid"], set()).add(result["card"])
    assert all(len(found) == 1 for found in of_process.values())  # a worker keeps its card
    assert set.union(*of_process.values()) <= {"4", "6"} and results[2]["status"] == "failed"
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "4,6"  # this process keeps its own


def handed_over(monkeypatch, launched):
    """Let the launcher start no worker; keep what it would have started them with."""
    from lorax.running.launchers import workers

    def train(work, processes, train, pins):
        launched.append((len(work), processes, [pin["CUDA_VISIBLE_DEVICES"] for pin in pins]))
        return [{"status": "finished", "run_id": None, "message": None} for configs, _ in work for _ in configs]

    monkeypatch.setattr(workers, "train_packs", train)
    monkeypatch.setattr(cards, "seen_by_torch", lambda: (3, False))


GRID = ["-m", "base=false", "rank=2", "seed=0,1,2,3", "hydra/launcher=packed", "hydra.launcher.lanes=1"]


@pytest.mark.parametrize(
    ("given", "processes", "pins"),
    [
        ({"gpus": "auto"}, 3, ["0", "1", "2"]),
        ({"gpus": 2}, 2, ["0", "1"]),
        ({"gpus": [2], "processes": 2}, 2, ["2"]),
        ({"gpus": "auto", "processes": 1}, 1, ["0", "1", "2"]),
        ({}, 1, [None]),
        ({"processes": 2}, 2, [None]),
    ],
)
def test_processes_are_as_many_as_cards_unless_given(monkeypatch, given, processes, pins):
    monkeypatch.setattr(cards, "seen_by_torch", lambda: (3, False))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    launcher = PackedLauncher(**given)
    assert launcher.processes == processes and [pin.get("CUDA_VISIBLE_DEVICES") for pin in launcher.pins] == pins


def test_auto_without_a_card_is_said_and_goes_on(monkeypatch, capsys):
    monkeypatch.setattr(cards, "seen_by_torch", lambda: (0, False))
    launcher = PackedLauncher(gpus="auto")
    assert (launcher.processes, launcher.cards, launcher.pins) == (1, [], [{}])
    assert "no card is visible" in capsys.readouterr().out
    with pytest.raises(UserError, match="gpus=1: .*none is visible"):
        PackedLauncher(gpus=1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "processes", "pins"),
    [
        (["hydra.launcher.gpus=auto"], 3, ["0", "1", "2"]),
        (["hydra.launcher.gpus=1"], 1, ["0"]),
        (["hydra.launcher.gpus=[0,2]", "hydra.launcher.processes=4"], 4, ["0", "2"]),
    ],
)
def test_the_launcher_starts_a_worker_for_each_card(lorax, monkeypatch, capsys, words, processes, pins):
    from lorax.running import sweep

    launched = []
    handed_over(monkeypatch, launched)
    monkeypatch.setattr(sweep, "_show_tables", lambda configs: None)  # nothing has run
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert lorax(*GRID, *words) == 0 and launched == [(4, processes, pins)]
    assert ("4 workers on 2 card(s) in turn" in capsys.readouterr().out) == (processes == 4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["hydra.launcher.gpus=4"], "gpus=4: must be from 1"),
        (["hydra.launcher.gpus=2", "device=cpu"], "device=cpu: hydra.launcher.gpus"),
        (["hydra.launcher.gpus=two"], "gpus=two"),
    ],
)
def test_the_launcher_refuses_before_it_starts(lorax, monkeypatch, capsys, words, says):
    launched = []
    handed_over(monkeypatch, launched)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert lorax(*GRID, *words) == 2 and not launched
    err = capsys.readouterr().err
    assert says in err and err.count("\n") == 1


def test_a_job_s_own_card_is_refused_beside_pinned_ones():
    class Config:
        device = "cuda:1"

    with pytest.raises(UserError, match="device=cuda:1"):
        check_devices([Config()])
    Config.device = "cuda:0"
    check_devices([Config()])
