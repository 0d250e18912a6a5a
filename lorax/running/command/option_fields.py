"""Fields of the options of a group (conf/init, conf/task, conf/model), and words that set one of swept options."""

from __future__ import annotations

import re
from collections.abc import Sequence

GROUPS = ("init", "task", "model")


def with_fields_of_swept(words: Sequence[str]) -> list[str]:
    """Return the words, `init.balance=0.01` as `++init.balance=0.01` where the option of its group is swept.

    Before a sweep Hydra composes the fixed words alone, on the default option, which need not have a field that all of
    `init=molora,hydra_lora` have. With `++` it is there then too; what the option of a job does not have is refused
    with the job.
    """
    swept = {group for group in GROUPS if any(_is_sweep_of(group, word) for word in words)}
    return [f"++{word}" if _sets_field_of(swept, word) else word for word in words]


def fields_of(group: str) -> dict[str, set[str]]:
    """Return the fields that the options of a group set in their YAML files, nested with dots; and which set them."""
    import yaml

    from lorax.config import conf_dir

    names: dict[str, set[str]] = {}
    for path in sorted((conf_dir() / group).glob("*.yaml")):
        for key, value in (yaml.safe_load(path.read_text()) or {}).items():
            inner = value if isinstance(value, dict) else {}
            for name in (f"{group}.{key}", *(f"{group}.{key}.{name}" for name in inner)):
                if key != "defaults":
                    names.setdefault(name, set()).add(path.stem)
    return dict(sorted(names.items()))


def _is_sweep_of(group: str, word: str) -> bool:
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    if not word.startswith(f"{group}="):
        return False
    try:
        [override] = OverridesParser.create().parse_overrides([word])
    except HydraException:
        return False  # Hydra's own message
    return override.is_sweep_override()


def _sets_field_of(groups: set[str], word: str) -> bool:
    found = re.match(r"(init|task|model)\.[\w.]+(?==)", word)
    return found is not None and found[1] in groups and found[0] in fields_of(found[1])
