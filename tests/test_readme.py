"""What README and experiments tell people to type exists."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = [ROOT / "experiments", ROOT / "docs"]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(p for d in FOLDERS for p in d.glob("*.md"))]


def commands(page):
    return re.findall(r"python -m lorax\.run ([^`#\n]+)", page.read_text())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_option_that_a_page_names_exists(page):
    for command in commands(page):
        for word in command.split():
            group, equals, values = word.lstrip("+").partition("=")
            folder = ROOT / "conf" / group
            if equals and folder.is_dir() and "<" not in values and not values.endswith(".yaml"):
                for value in values.split(","):
                    assert (folder / f"{value}.yaml").is_file(), f"{page.name}: {word}"


def test_make_targets_that_the_readme_names_exist():
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for name in re.findall(r"`?make ([a-z-]+)", (ROOT / "README.md").read_text()):
        assert name in targets


def test_ci_types_what_the_readme_says():
    assert "make test" in (ROOT / ".ci" / "run").read_text().splitlines()


def test_experiments_and_their_yaml_carry_one_name():
    known = {path.stem for group in ("study", "experiment") for path in (ROOT / "conf" / group).glob("*.yaml")}
    for page in (ROOT / "experiments").glob("*.md"):
        assert page.stem in known, page


def test_the_readme_s_table_is_the_committed_one():
    def cells(line):
        return [re.sub(r" \(\d(,\d)*\)$", "", cell.strip()) for cell in line.strip().strip("|").split("|")]

    page = (ROOT / "README.md").read_text().partition("| arm | score")[2].partition("\n\n")[0].splitlines()[2:]
    table = (ROOT / "results/tables/smollm2_default.md").read_text().partition("equal parameters")[0].splitlines()
    known = [[row[0], row[1], row[3], row[4]] for row in map(cells, table) if len(row) == 8]
    assert len(page) == 10 and all(cells(line) in known for line in page)
    for picture in re.findall(r"\]\((results/[^)]+)\)", (ROOT / "README.md").read_text()):
        assert (ROOT / picture).is_file()
