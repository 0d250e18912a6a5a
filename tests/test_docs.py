"""The pages that docs/ makes from the code hold what the code has; `make docs` builds the site, warnings are errors."""

import importlib.util
from pathlib import Path

import pytest

from lorax.config import Schema
from lorax.initializers.registry import names

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def generate():
    spec = importlib.util.spec_from_file_location("docs_generate", ROOT / "docs" / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_key_that_is_no_group_has_a_row_with_its_meaning(generate):
    from dataclasses import fields

    rows = {line.split("`")[1] for line in generate.keys().splitlines()[2:]}
    assert {item.name for item in fields(Schema)} - rows == {"init", "task", "model", "train", "reinforce", "study"}


def test_a_method_s_page_has_its_equation_and_its_options(generate):
    for name in names():
        page = generate.method(name)
        assert page.startswith(f"# {name}\n\n> ") and "lr_prior:" in page, name


def test_pages_that_the_site_links_to_exist():
    import re

    for page in (ROOT / "docs").glob("*.md"):
        for target in re.findall(r"\]\((\w+\.md)\)", page.read_text()):
            assert (page.parent / target).is_file(), (page.name, target)


def test_the_study_on_the_page_about_own_data_is_one_that_is_accepted(tmp_path):
    from lorax.studies.parse import from_yaml

    page = (ROOT / "docs" / "own_data.md").read_text()
    [text] = page.split("```yaml\n")[1:]
    (tmp_path / "mine.yaml").write_text(text.partition("```")[0])
    assert from_yaml(tmp_path / "mine.yaml").name == "mine"
