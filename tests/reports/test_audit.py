"""The audit of a study: each way of bending its evidence is named, and a clean study gets one line."""

from __future__ import annotations

import json
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from made_study import made_record

from lorax.records import RunRecord, Store, canonical, run_id
from lorax.records.chain import append, chain_path, read_chain
from lorax.records.record import content_digest
from lorax.reports.audit import anchored
from lorax.reports.audit.audit import audit, foot
from lorax.reports.main_table import main_table
from lorax.reports.text.cells import to_csv
from lorax.studies.parse import from_mapping
from lorax.studies.registration import digest, freeze, frozen, frozen_path
from lorax.studies.rounds import next_round
from lorax.studies.study import read_study
from lorax.tables import main

CODE = {"commit": "c0ffee0", "dirty": False, "machine": {"processor": "A", "cores": 2, "threads": "1"}}
DATA = {"name": "demo", "model": "toy", "tasks": ["words"], "arms": ["lora", "pissa"], "reference": "lora",
        "margin": 0.02, "tuning": False, "costs": False, "seeds": [0, 1, 2, 3, 4],
        "fixed": {"steps": 8}}  # fmt: skip
FEW = {"test": 40}


def run(store, alter=lambda record, rows: None, **changes):
    """Register a study and answer its jobs, each record through the store as a run writes it."""
    spec = from_mapping(DATA | changes)
    freeze(spec, store.root, CODE)
    for job in next_round(spec, []).jobs:
        record, rows = made_record(job, items=FEW, commit="c0ffee0")
        record.provenance |= {"processor": "A", "threads": 1, "chain": store.chain_head(spec.name)}
        record.model["attention"] = "sdpa"
        alter(record, rows)
        store.write(record, rows)


@pytest.fixture(scope="session")
def whole(tmp_path_factory):
    store = Store(tmp_path_factory.mktemp("whole"))
    run(store)
    return store


@pytest.fixture
def store(whole, tmp_path):
    return Store(shutil.copytree(whole.root, tmp_path / "results"))


def found(store, name="demo", **options):
    """What the audit says: level, kind and text of each finding."""
    audited = audit(store, name, **{"git": False} | options)
    return [(one.level, one.kind, f"{one.where} {one.text}") for one in audited.findings if one.level != "note"]


def kinds(store, **options):
    return {(level, kind) for level, kind, _ in found(store, **options)}


def said(store, level, kind, words, **options):
    """Whether one finding of that level and kind has these words."""
    findings = found(store, **options)
    return any(one[:2] == (level, kind) and words in one[2] for one in findings) or pytest.fail(str(findings))


def final(store, arm="pissa", seed=0):
    return next(one for one in store.read("demo") if (one.label, one.config["seed"]) == (arm, seed))


def edit_record(store, record, change, remake=True):
    """Edit a record's file as an attacker would: with the public function its digest is made anew."""
    path = store.path("demo", record.run_id)
    data = json.loads(path.read_text())
    change(data)
    data.pop("digest")
    digest_then = content_digest(data) if remake else "0" * 64
    path.write_text(json.dumps(data | {"digest": digest_then}))


def edit_design(store, remake=True, **changes):
    """Edit the design's file; its digest is made anew with the public function."""
    path = frozen_path(store.root, "demo")
    spec, data = replace(frozen(store.root, "demo"), **changes), json.loads(path.read_text())
    path.write_text(json.dumps(data | {"spec": spec.plain(), "digest": digest(spec)}))


def chain_anew(store, keep=lambda facts: True, change=lambda facts: facts, records=False):
    """Write the chain anew from its own facts; the registration names it, and where asked the records too."""
    path = chain_path(store.root, "demo")
    facts = [change(dict(line.facts)) for line in read_chain(path) if keep(line.facts)]
    path.unlink()
    for each in facts:
        if records and each["kind"] == "record":
            record = store.get("demo", each["run"])
            head = read_chain(path)[-1].digest
            edit_record(store, record, lambda data, head=head: data["provenance"].update(chain=head))
            each = each | {"record": json.loads(store.path("demo", each["run"]).read_text())["digest"]}
        append(path, [each])
    registered = json.loads(frozen_path(store.root, "demo").read_text())
    first = read_chain(path)[0]
    registered |= {"chain": first.digest, "fixed": first.at}
    frozen_path(store.root, "demo").write_text(json.dumps(registered))


def git(folder, *words, when="2026-01-01T00:00:00+00:00"):
    """Run git in a folder; return what it prints."""
    who = {"NAME": "a", "EMAIL": "a@b.c", "DATE": when}
    env = {f"GIT_{role}_{key}": value for role in ("AUTHOR", "COMMITTER") for key, value in who.items()}
    done = subprocess.run(["git", *words], cwd=folder, env=env | {"PATH": "/usr/bin:/bin:/usr/local/bin"},
                          capture_output=True, text=True, check=True)  # fmt: skip
    return done.stdout.strip()


# ---------------------------------------------------------------- clean


def test_a_clean_study_has_one_line(store, capsys, monkeypatch):
    monkeypatch.setattr(anchored, "_code", lambda case: None)  # whether this is a checkout does not matter here
    assert found(store) == []
    [line] = foot(store, read_study(frozen(store.root, "demo"), store))
    assert line.startswith(
        "10 records, 10 scored on test, chain of 11 lines, no anchor: nothing found, it holds together"
    )
    assert main(["audit=demo", f"results_dir={store.root}"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("demo: 10 records")
    assert main(["audit=all", "json=true", f"results_dir={store.root}"]) == 0
    [plain] = json.loads(capsys.readouterr().out)
    assert (plain["name"], plain["chain"], plain["breaks"]) == ("demo", 11, False)
    assert main(["audit=dem", f"results_dir={store.root}"]) == 2
    assert main(["audit=../x", f"results_dir={store.root}"]) == 2
    assert capsys.readouterr().err.count("\n") == 2


# ---------------------------------------------------------------- the eight attacks


@pytest.mark.parametrize("remake", [False, True], ids=["left", "digest remade"])
def test_1_scores_edited_in_a_record(store, remake, capsys):
    edit_record(store, final(store), lambda data: data["scores"]["test"].update(score=0.99), remake)
    if remake:
        assert said(store, "breaks", "score", "its test score is 0.99, its items say 0.6")
        assert said(store, "breaks", "record", "not as it was entered in line")
    else:
        assert said(store, "breaks", "record", "its content does not have its digest")
    assert main(["audit=demo", f"results_dir={store.root}"]) == 1
    assert "the evidence is broken" in capsys.readouterr().out


@pytest.mark.parametrize("changes", [{"margin": 0.2}, {"reference": "pissa"}, {"alpha": 0.2}, {"procedure": "crossed"}])
def test_2_design_edited_and_its_digest_remade(store, changes):
    edit_design(store, **changes)
    assert said(store, "breaks", "design", "margin, seeds, arms or tuning were changed since")


def test_3_the_date_set_back(store):
    path = frozen_path(store.root, "demo")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"fixed": "2020-01-01T00:00:00+00:00"}))
    assert said(store, "breaks", "dates", "fixed=2020-01-01T00:00:00+00:00, but the chain began at 20")
    assert said(store, "warning", "dates", "days before the first run: anybody can write that date")


def test_4_a_seed_dropped_from_design_and_records(store):
    for arm in ("lora", "pissa"):
        gone = final(store, arm, 3)
        store.path("demo", gone.run_id).unlink()
    edit_design(store, seeds=(0, 1, 2, 4))
    assert said(store, "breaks", "dropped", f"run {gone.run_id} (pissa, seed 3, {100 * gone.score('test'):.1f} %")
    assert said(store, "breaks", "design", "registered as")
    assert said(store, "warning", "runs", "the design's seeds are 0, 1, 2, 4: 3 left out")
    chain_anew(store, lambda facts: facts.get("seed") != 3, lambda facts: facts | (
        {"design": digest(frozen(store.root, "demo"))} if facts["kind"] == "design" else {}))  # fmt: skip
    assert said(store, "breaks", "chain", "name a line that the chain does not have before theirs")


COPIES = {
    "to the bit": (lambda number: number, lambda number: number, "losses of", "curve"),
    "other last digits": (
        lambda number: float(f"{number:.9g}"),
        lambda number: number * 1.0000001,
        "losses of",
        "curve of",
    ),
    "answers only": (lambda number: number * 1.01, lambda number: number * 0.97, "", ""),
}


@pytest.mark.parametrize(("curve", "losses", "first", "second"), COPIES.values(), ids=COPIES.keys())
def test_5_the_worst_seed_replaced_by_a_copy_of_the_best(tmp_path, curve, losses, first, second):
    def own_words(record, rows):
        for row in rows:
            row["completion"] += "" if row["score"] else f" {row['id']} {record.config['seed']}"

    store = Store(tmp_path)
    run(store, own_words)
    runs = sorted((final(store, "pissa", seed) for seed in range(5)), key=lambda one: one.score("test"))
    worst, best = runs[0], runs[-1]
    rows = [row | {"loss": losses(row["loss"])} for row in store.items(best)]
    scores = {"test": best.scores["test"] | {"loss": sum(row["loss"] for row in rows) / len(rows)}}
    path = chain_path(store.root, "demo")
    kept = path.read_bytes()
    store.write(replace(worst, scores=scores, curve=[row | {"loss": curve(row["loss"])} for row in best.curve]), rows)
    path.write_bytes(kept)
    if first:
        assert said(store, "breaks", "copies", first) and said(store, "breaks", "copies", second)
    else:
        assert said(store, "warning", "copies", "different wrong ones too: two seeds hardly can")
    assert said(store, "breaks", "record", "not as it was entered")


def test_6_the_study_again_under_another_name_with_more_seeds(store):
    run(store, name="demo_2", seeds=list(range(9)))
    [(level, kind, text)] = found(store, "demo_2")
    assert (level, kind) == ("warning", "siblings")
    assert "study 'demo' compares lora, pissa on words too, fixed 20" in text
    assert "10 runs scored on test, 5 seeds (0, 1, 2, 3, 4), run from 20" in text
    assert said(store, "warning", "siblings", "9 seeds (0, 1, 2, 3, 4, 5, 6, 7 ...)")


@pytest.mark.parametrize(
    ("place", "fact", "value", "words"),
    [
        ("provenance", "commit", None, "3 of 6 records hold no commit (3 of them scored on test)"),
        (
            "provenance",
            "commit",
            "beef",
            "final runs differ in commit: c0ffee0 (3), beef (3); pissa on none of the usual",
        ),
        ("provenance", "processor", "B", "final runs differ in processor: A (3), B (3); pissa on none"),
        ("provenance", "threads", 8, "final runs differ in threads: 1 (3), 8 (3)"),
        ("model", "attention", "eager", "final runs differ in attention: sdpa (3), eager (3)"),
        ("provenance", "dirty", True, "3 of 6 records made with uncommitted changes"),
    ],
)
def test_7_finals_made_elsewhere(tmp_path, place, fact, value, words):
    def alter(record, rows):
        if record.label == "pissa":
            getattr(record, place)[fact] = value

    store = Store(tmp_path)
    run(store, alter, seeds=[0, 1, 2])
    assert said(store, "warning", "commits" if fact in ("commit", "dirty") else "machine", words)
    assert {level for level, _ in kinds(store)} == {"warning"}


def test_8_an_arm_scored_on_other_items(tmp_path):
    def alter(record, rows):
        if record.label == "pissa":
            for row in rows[:20]:
                row["id"] = f"easy {row['id']}"

    store = Store(tmp_path)
    run(store, alter, seeds=[0, 1, 2])
    assert said(
        store, "breaks", "items", "words: pissa (3 final runs) scored on 40 test items, 20 of them among the 40"
    )


# ---------------------------------------------------------------- their relatives


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        (lambda rows: rows.pop(), "items", "scored on 39 test items"),
        (lambda rows: rows[0].update(answer="7"), "items", "1 item with another expected answer"),
        (lambda rows: [row.update(score=1.0, tolerant=1.0) for row in rows], "score", "scored otherwise than the same"),
    ],
    ids=["a hard item left out", "an answer made right", "all called right"],
)
def test_items_bent_before_they_are_written(tmp_path, change, kind, words):
    def alter(record, rows):
        if (record.label, record.config["seed"]) == ("pissa", 2):
            change(rows)
            for key in ("score", "tolerant", "loss"):
                record.scores["test"][key] = sum(row[key] for row in rows) / len(rows)
            record.scores["test"]["n"] = len(rows)

    store = Store(tmp_path)
    run(store, alter, seeds=[0, 1, 2])
    assert said(store, "breaks", kind, words)


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        ({"answer": "7"}, "items", "1 item with another expected answer"),
        ({"score": 0.5}, "score", "scored otherwise than the same answer"),
    ],
    ids=["expected answer", "score"],
)
def test_validation_picks_the_rates_and_its_items_are_compared_too(tmp_path, change, kind, words):
    def alter(record, rows):
        checked = [row | {"split": "validation", "answer": f"v{row['answer']}"} for row in rows]
        if (record.label, record.config["seed"]) == ("pissa", 2):
            checked[0].update(change)
        record.scores["validation"] = record.scores["test"] | {"score": sum(r["score"] for r in checked) / len(checked)}
        rows += checked

    for bent in (False, True):
        store = Store(tmp_path / str(bent))
        run(store, alter if bent else lambda record, rows: alter(record, rows) or _same(rows, record), seeds=[0, 1, 2])
        if bent:
            assert said(store, "breaks", kind, words)
        else:
            assert not [one for one in found(store) if one[0] == "breaks"], "equal ids of two splits are two items"


def _same(rows, record):
    """Take the change back."""
    half = len(rows) // 2
    rows[half] = rows[0] | {"split": "validation", "answer": f"v{rows[0]['answer']}"}
    record.scores["validation"]["score"] = record.scores["test"]["score"]


def test_the_chain_taken_away(store):
    chain_path(store.root, "demo").unlink()
    assert said(store, "breaks", "chain", "10 records named a chain, and there is none")
    data = json.loads(frozen_path(store.root, "demo").read_text())
    del data["chain"]
    frozen_path(store.root, "demo").write_text(json.dumps(data))
    assert said(store, "breaks", "chain", "10 records named a chain, and there is none")


def test_lines_changed_left_out_or_moved(store):
    path = chain_path(store.root, "demo")
    lines = path.read_bytes().splitlines(keepends=True)
    for changed in (
        lines[:3] + lines[4:],
        [*lines[:3], lines[4], lines[3], *lines[5:]],
        [lines[0], lines[1].replace(b'"seed":', b'"seed":1'), *lines[2:]],
        [lines[0], b"no JSON\n", *lines[1:]],
    ):
        path.write_bytes(b"".join(changed))
        assert said(store, "breaks", "chain", "does not name the line before")
    path.write_bytes(b"".join(lines[1:]))
    assert {("breaks", "chain"), ("breaks", "design")} <= kinds(store)
    path.write_bytes(b"".join(lines[:-2]))
    assert said(store, "breaks", "chain", "was never entered")


WEIRD = [None, [], "x", 1e300, {"a": [1]}]


@pytest.mark.parametrize("weird", WEIRD, ids=repr)
def test_whatever_a_chain_or_a_design_holds_is_a_finding_and_no_error(tmp_path, weird):
    store = Store(tmp_path)
    run(store, seeds=[0], arms=["lora", "pissa"])
    chain, design = chain_path(store.root, "demo"), frozen_path(store.root, "demo")
    lines, fixed = chain.read_text().splitlines(), json.loads(design.read_text())
    for at in (0, 1):
        bent = [json.loads(line) for line in lines]
        bent[at] |= dict.fromkeys([key for key in bent[at] if key != "kind"], weird)
        chain.write_text("".join(json.dumps(line) + "\n" for line in bent))
        assert audit(store, "demo", git=False).breaks
    chain.write_text("".join(line + "\n" for line in lines))
    for key in fixed:
        design.write_text(json.dumps(fixed | {key: weird}))
        assert audit(store, "demo").breaks
    design.write_text(json.dumps(weird))
    assert audit(store, "demo", git=False).breaks
    chain.write_bytes(b"\xff\xfe\n[1]\n\n")
    assert audit(store, "demo", git=False).breaks


def test_a_run_made_again_until_it_fits(store):
    old = final(store)
    store.path("demo", old.run_id).unlink()
    rows = store.items(old)
    for row in rows[:15]:
        row |= {"score": 1.0, "tolerant": 1.0, "completion": f"#### {row['answer']}"}
    scores = {key: sum(row[key] for row in rows) / len(rows) for key in ("score", "tolerant", "loss")}
    store.write(replace(old, scores={"test": scores | {"n": len(rows)}}), rows)
    assert said(store, "breaks", "chain", f"run {old.run_id} finished 2 times")


def test_a_record_put_there_by_hand(store):
    donor = final(store)
    identity = donor.identity | {"seed": 77}
    forged = replace(donor, run_id=run_id(identity), identity=identity, config=donor.config | {"seed": 77})
    store.path("demo", forged.run_id).write_text(replace(forged, items_digest="").to_json())
    assert said(store, "breaks", "chain", "was never entered")
    assert store.catch_up("demo") == 1 and store.catch_up("demo") == 0
    assert said(store, "warning", "chain", "1 record entered when the study was started again")
    assert said(store, "breaks", "copies", "to the bit")


def test_runs_that_no_row_uses_are_counted(store):
    for seed in (5, 6):
        record = final(store)
        identity = record.identity | {"seed": seed, "lr": 3e-4}
        rows = [row | {"loss": row["loss"] * (seed + 1)} for row in store.items(record)]
        scores = {"test": record.scores["test"] | {"loss": sum(row["loss"] for row in rows) / len(rows)}}
        again = replace(record, run_id=run_id(identity), identity=identity, config=record.config | identity, curve=[],
                        scores=scores)  # fmt: skip
        store.write(again, rows)
    assert said(store, "warning", "runs", "pissa: 7 runs scored on test, 2 of them in no row, at lr 0.0003")


def test_a_partner_of_a_pack_without_a_record(store):
    record = final(store)
    record.provenance["pack"] = {"lanes": [record.run_id, "f" * 16]}
    store.write(record, store.items(record))
    assert said(store, "breaks", "dropped", f"run {'f' * 16} was trained in one pack with pissa")


def test_a_study_from_before_the_chain_says_so_and_gets_none(tmp_path):
    store = Store(tmp_path)
    run(store, lambda record, rows: record.provenance.pop("chain"))
    path = frozen_path(store.root, "demo")
    data = json.loads(path.read_text())
    del data["chain"]
    path.write_text(json.dumps(data))
    chain_path(store.root, "demo").unlink()
    assert found(store)[0][:2] == ("warning", "chain") and len(found(store)) == 1
    assert said(store, "warning", "chain", "registered before the chain existed")
    freeze(frozen(store.root, "demo"), store.root, CODE)
    assert not chain_path(store.root, "demo").exists() and "chain" not in json.loads(path.read_text())


def test_an_unfinished_study_and_one_without_a_run(tmp_path):
    store = Store(tmp_path)
    freeze(from_mapping(DATA), store.root, CODE)
    assert found(store) == [] and audit(store, "demo").records == 0
    run(store)
    store.path("demo", final(store).run_id).unlink()
    assert {("breaks", "dropped"), ("warning", "runs")} == kinds(store)


def test_a_sweep_is_audited_too(tmp_path):
    store = Store(tmp_path)
    for seed in (0, 1):
        identity = {"init": {"name": "lora", "rank": 8}, "seed": seed}
        curve = [{"step": k, "loss": 1.0 / (k + 1)} for k in range(4)]
        record = RunRecord(run_id(identity), "sweep", "finished", identity, identity, scores={"test": {"score": 0.5}},
                           costs={"trainable": 8}, task={"name": "toy"}, curve=curve,
                           provenance={"commit": "c", "threads": 1 + seed})  # fmt: skip
        store.write(record)
    assert {("breaks", "copies"), ("warning", "machine"), ("warning", "items")} == kinds(store, name="sweep")


# ---------------------------------------------------------------- the chain as it is written


def test_a_kill_between_record_and_line_loses_nothing(tmp_path, monkeypatch):
    from lorax.records import chain

    store, enter = Store(tmp_path), chain.enter

    def die(path, records, late=False):
        records = list(records)
        if not late and records[0].config["seed"] == 4 and records[0].label == "pissa":
            with path.open("ab") as file:
                file.write(b'{"kind":"rec')  # the kill falls into the writing of the line
            raise KeyboardInterrupt
        enter(path, records, late)

    monkeypatch.setattr(chain, "enter", die)
    with pytest.raises(KeyboardInterrupt):
        run(store)
    assert len(store.read("demo")) == 10 and len(read_chain(chain_path(store.root, "demo"))) == 10
    assert store.catch_up("demo") == 1
    assert found(store) == [("warning", "chain", found(store)[0][2])] and "1 record entered when" in found(store)[0][2]
    assert not list((store.root / "state").rglob("*.lock"))


def test_many_writers_make_one_chain(store):
    donor = final(store)

    def write(seed):
        identity = donor.identity | {"seed": seed}
        own = Store(store.root)
        record = replace(donor, run_id=run_id(identity), identity=identity, config=donor.config | {"seed": seed})
        own.write_all([(record, [])])

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(100, 124)))
    lines = read_chain(chain_path(store.root, "demo"))
    assert (
        len(lines) == 35 and all(line.fits for line in lines) and len({line.facts.get("run") for line in lines}) == 35
    )
    assert not list((store.root / "state").rglob("*.lock"))


def test_a_failed_run_may_be_tried_again(store):
    record = final(store)
    identity = record.identity | {"seed": 9}
    again = replace(record, run_id=run_id(identity), identity=identity, config=record.config | {"seed": 9}, curve=[])
    store.write(replace(again, status="failed", scores={}))
    store.write(replace(again, scores={}), [])
    assert kinds(store) == set()


def test_another_machine_gets_a_line_and_the_same_one_none(store):
    spec, path = frozen(store.root, "demo"), chain_path(store.root, "demo")
    freeze(spec, store.root, CODE)
    assert len(read_chain(path)) == 11
    freeze(spec, store.root, CODE | {"commit": "d00d"})
    line = read_chain(path)[-1]
    assert (line.kind, line.facts["commit"], line.facts["analysis"]["version"]) == ("start", "d00d", 1)
    assert any("went on 1 time" in one.text for one in audit(store, "demo", git=False).findings)


def test_a_registration_may_be_taken_back_before_its_first_run_and_not_after(tmp_path):
    from lorax.errors import UserError

    store = Store(tmp_path)
    path = freeze(from_mapping(DATA), store.root, CODE)
    path.unlink()
    freeze(from_mapping(DATA | {"margin": 0.1}), store.root, CODE)
    path.unlink()
    run(store)
    path.unlink()
    with pytest.raises(UserError, match="its chain began with design"):
        freeze(from_mapping(DATA | {"margin": 0.1}), store.root, CODE)
    freeze(from_mapping(DATA), store.root, CODE)  # the same design comes back with its date
    assert found(store) == []


# ---------------------------------------------------------------- what only a place outside can show


def test_what_an_anchor_is_for(tmp_path):
    """Chain, registration and records written anew together hold together: a commit made before shows it."""
    from lorax.errors import UserError

    store = Store(tmp_path / "results")
    spec = from_mapping(DATA)
    freeze(spec, store.root, CODE)
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "registered", when=datetime.now(UTC).isoformat(timespec="seconds"))
    commit = git(tmp_path, "rev-parse", "HEAD")
    with pytest.raises(UserError, match=r"study.anchor=main: the name of a commit is needed"):
        freeze(spec, store.root, CODE, "main")
    freeze(spec, store.root, CODE, commit)
    run(store)
    audited = audit(store, "demo")
    assert audited.anchor == commit and not audited.breaks
    [note] = [one.text for one in audited.findings if one.kind == "anchor"]
    assert f"commit {commit[:12]} of " in note and "when no runs were over and none scored on test" in note

    edit_design(store, margin=0.2)
    now = digest(frozen(store.root, "demo"))
    chain_anew(store, change=lambda facts: facts | ({"design": now} if facts["kind"] == "design" else {}), records=True)
    assert found(store) == []  # nothing inside the folder tells
    assert said(store, "breaks", "anchor", f"commit {commit[:12]} holds design", git=True)
    assert said(store, "breaks", "design", "margin=0.02 then", git=True)


def test_anchors_that_show_nothing(tmp_path):
    store = Store(tmp_path / "results")
    run(store)
    spec = frozen(store.root, "demo")
    freeze(spec, store.root, CODE, "abcdef1")
    assert said(store, "warning", "anchor", "lies in no git repository", git=True)
    git(tmp_path, "init", "-q")
    git(tmp_path, "commit", "-qm", "nothing", "--allow-empty")
    freeze(spec, store.root, CODE, git(tmp_path, "rev-parse", "HEAD"))
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "after the runs")
    freeze(spec, store.root, CODE, git(tmp_path, "rev-parse", "HEAD"))
    assert said(store, "breaks", "anchor", "abcdef1 is no commit of", git=True)
    assert said(store, "breaks", "anchor", "does not hold the registration", git=True)
    assert said(store, "warning", "anchor", "but 10 runs had been scored on test by then", git=True)


def test_dates_beside_those_of_commits(store, monkeypatch):
    """A run cannot have started before the commit of its code was made."""
    later = datetime(2099, 1, 1, tzinfo=UTC)
    monkeypatch.setattr(anchored, "_commit", lambda repository, name: later if name else None)
    monkeypatch.setattr(anchored, "_top", lambda folder: folder.resolve())
    monkeypatch.setattr(anchored, "_history", lambda case, repository: None)
    assert said(store, "breaks", "dates", "its commit c0ffee0 is of 2099", git=True)
    assert said(store, "breaks", "dates", "the chain began at", git=True)
    monkeypatch.setattr(anchored, "_commit", lambda repository, name: None)
    assert said(store, "warning", "commits", "10 records of commits that the code's repository does not know", git=True)


def test_a_chain_line_is_canonical_json(store):
    for raw in chain_path(store.root, "demo").read_text().splitlines():
        assert canonical(json.loads(raw)) == raw


def test_a_printed_table_that_the_records_do_not_give_is_named(store):
    path = store.root / "tables" / "demo.csv"
    study = read_study(frozen(store.root, "demo"), store)
    path.parent.mkdir(exist_ok=True)
    path.write_text(to_csv(main_table(study)))
    assert not any(kind == "table" for _, kind, _ in found(store, git=True))
    path.write_text(path.read_text().replace("0.", "9.", 1))
    assert said(store, "warning", "table", "not what the records give", git=True)
    assert not any(kind == "table" for _, kind, _ in found(store)), "the report that is being printed does not ask"
