"""The words of a command line, as Hydra's parser takes them; what Hydra would answer in many lines is refused here."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from lorax.errors import UserError, near
from lorax.running.command.option_fields import with_fields_of_swept
from lorax.running.command.task_parts import with_parts
from lorax.running.command.yaml_files import read_mapping, refuse_unfolding

_MODES = {
    "-m", "--multirun", "-c", "--cfg", "-h", "--help", "--hydra-help", "-i", "--info", "-sc", "--shell-completion",
}  # fmt: skip
_TAKE_A_VALUE = (
    "-c", "--cfg", "-p", "--package", "-cp", "--config-path", "-cn", "--config-name", "-cd", "--config-dir",
    "-i", "--info", "--experimental-rerun",
)  # fmt: skip
LONGEST_WORD = 100_000


def hydra_words(words: Sequence[str]) -> list[str]:
    """Return the command line as Hydra's parser takes it: options first, `+study=`, and -m for a study.

    A study may be named by its file: `study=folder/mine.yaml`. Fields of a study that its YAML leaves out can be set
    like those that it has.

    Raises:
        UserError: an option that Hydra does not have, or a file that cannot be read.
    """
    options: list[str] = []
    overrides: list[str] = []
    for before, word in zip(["", *words], words, strict=False):
        if len(word) > LONGEST_WORD:
            raise UserError(f"{word}: a word of {len(word):,} characters")
        value = before in _TAKE_A_VALUE and ("=" not in word or Path(word).exists())
        (options if word.startswith("-") or value else overrides).append(word)
    _check_options([*options, *overrides])
    overrides = with_fields_of_swept(with_parts([_quoted(_study_word(word)) for word in overrides]))
    if any(word.startswith("+study=") for word in overrides):
        overrides = [given for word in overrides for given in _field_of_study(word)]
        if not {word.split("=")[0] for word in options} & _MODES:
            options.insert(0, "--multirun")
    for word in overrides:
        group = re.fullmatch(r"\+*hydra\.(launcher|sweeper)=(.*)", word, re.DOTALL)
        if group:
            raise UserError(f"{word}: it is chosen with a slash: hydra/{group[1]}=<name>")
    return options + overrides


def _check_options(words: list[str]) -> None:
    """Refuse what Hydra's own parser would refuse, in one line instead of its usage."""
    from hydra._internal.utils import get_args_parser

    parser = get_args_parser()
    known = sorted(word for action in parser._actions for word in action.option_strings)

    def refuse(message: str) -> None:
        unknown = re.fullmatch(r"unrecognized arguments: (\S+).*", message, re.DOTALL)
        raise UserError(f"{unknown[1]}: no such option; {near(unknown[1], known)}" if unknown else message)

    parser.error = refuse  # type: ignore[method-assign, assignment]
    given = parser.parse_args(words)
    modes = [given.run, given.cfg is not None, given.multirun, given.shell_completion, given.info is not None]
    if given.resolve and given.cfg is None and not given.help:
        raise UserError("--resolve: shows values of `--cfg job`; give both")
    if sum(map(bool, modes)) > 1:
        raise UserError("one of --run, --multirun, --cfg, --info and --shell-completion at a time")
    if given.config_dir is not None:
        if not Path(given.config_dir).is_dir():
            raise UserError(f"--config-dir={given.config_dir}: no such folder")
        refuse_unfolding(given.config_dir)


def config_folders(words: Sequence[str]) -> list[str]:
    """Return the folders of YAML files that the user's words name, for looking for the one that cannot be read."""
    named = []
    for before, word in zip(["", *words], words, strict=False):
        option, equals, value = word.partition("=")
        if option in ("-cd", "--config-dir", "-cp", "--config-path") and equals:
            named.append(value)
        elif before in ("-cd", "--config-dir", "-cp", "--config-path"):
            named.append(word)
    return [folder for folder in named if Path(folder).is_dir()]


def _study_word(word: str) -> str:
    """Return `+study=<name>`; a study's file is made known to Hydra under a name of its own."""
    key, equals, value = word.partition("=")
    if key not in ("study", "+study", "++study") or not equals:
        return word
    path = Path(value.strip("'\"")).expanduser()
    if path.suffix not in (".yaml", ".yml"):
        return f"+study={value}"
    from hydra.core.config_store import ConfigStore

    name = "file_" + re.sub(r"\W", "_", path.stem)
    ConfigStore.instance().store(group="study", name=name, node=read_mapping(path))
    return f"+study={name}"


def _quoted(word: str) -> str:
    """Quote values that Hydra's grammar takes only in quotes: `~/mine`, `dätä.jsonl`, `(q|v)_proj`, `a=b`.

    What has quotes, brackets or a comma within parentheses already means something and stays as it is.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    key, equals, value = word.partition("=")
    is_plain = re.fullmatch(r"[+\w./@-]+", key) and re.fullmatch(r"[^'\"\[\]{}\n]*[^'\"\[\]{}\n\\]", value)
    if not equals or not is_plain or not _UNREAD.search(value) or ("(" in value and "," in value):
        return word
    parser, pieces = OverridesParser.create(), value.split(",")
    for at, piece in enumerate(pieces):
        try:
            parser.parse_overrides([f"{key}={piece}"])
        except HydraException:
            pieces[at] = f"'{piece}'"
    return f"{key}={','.join(pieces)}"


_UNREAD = re.compile(r"[^\x20-\x7e]|[~()=&#;<>!^`]")
"""Characters that Hydra's grammar does not know, or not everywhere in a value."""


def _field_of_study(word: str) -> list[str]:
    """Let `study.<field>=` set a field that the study's YAML leaves to its default.

    Seeds are a list, a word or a mapping; a word comes first, because a list and a mapping are merged, not replaced.
    """
    from lorax.studies.parse import COMMANDS
    from lorax.studies.spec import StudySpec

    names = {item.name for item in fields(StudySpec)} | {*COMMANDS}
    match = re.match(r"study\.(\w+)[.=]", word)
    if not match or match[1] not in names:
        return [word]
    return ["++study.seeds=until_decided"] * bool(re.match(r"study\.seeds=[\[{]", word)) + [f"++{word}"]
