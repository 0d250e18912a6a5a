r"""Named rules that read an answer out of a completion, as published evaluations do it.

    hash_int          first `#### <digits>`, else 0                       LoRA-GA
    metamath          first number after the last "The answer is: ",      PiSSA, MiLoRA, LoRA-XS, SVFT
                      fractions evaluated, rounded to an integer
    peft_suite        after the last of five delimiters, first line       PEFT method_comparison
    last_number       last number, commas removed                         LLM-Adapters math10k
    keyword_first     first of true|false, solution1-2, answer1-5, ...    LLM-Adapters commonsense
    lm_eval_strict    `#### <number>`                                     lm-evaluation-harness
    lm_eval_flexible  last number                                         lm-evaluation-harness
    metamath_latex    after the last "The answer is: " up to ".\n",     MetaMath on MATH
                      compared by Hendrycks' rules for LaTeX
    exact             the stripped text itself
    number            last number, compared by value
    text              the first or the last line ends in the answer's words

They disagree on the same text: on the 1,319 gold answers of GSM8K's test set `hash_int` mis-reads 16
(14 with commas, 2 negative) and `metamath` one. Torch-free.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from fractions import Fraction

from lorax.errors import UserError, near
from lorax.tasks.latex import same_latex


@dataclass(frozen=True)
class Extractor:
    """A rule in two steps: read a value out of a text, then compare it with the gold answer."""

    name: str
    extract: Callable[[str], str | None]
    """Completion -> the value read, or None if there is none."""
    same: Callable[[str, str], bool]
    """Value read, gold answer -> whether they are the same."""

    def correct(self, completion: str, gold: str) -> int:
        """Return 1 if the completion is read as the gold answer, else 0."""
        value = self.extract(completion)
        return int(value is not None and self.same(value, gold))


def names() -> list[str]:
    """Return the names of all extractors."""
    return list(EXTRACTORS)


def get(name: str) -> Extractor:
    """Return an extractor by name.

    Raises:
        UserError: unknown name, with near misses.
    """
    if name not in EXTRACTORS:
        raise UserError(f"extractor {name!r}: {near(name, EXTRACTORS)}")
    return EXTRACTORS[name]


def _value(text: str) -> Fraction | None:
    """Return the number a text stands for, commas and a leading $ aside; None if it is none."""
    try:
        return Fraction(text.strip().replace(",", "").lstrip("$"))
    except (ValueError, ZeroDivisionError):
        return None


def _same_number(value: str, gold: str) -> bool:
    left, right = _value(value), _value(gold)
    return left is not None and left == right


def _hash_int(text: str) -> str:
    match = re.search(r"####\s*(\d+)", text)
    return match.group(1) if match else "0"


def _metamath(text: str) -> str | None:
    _, marker, tail = text.rpartition("The answer is: ")
    match = re.search(r"[\-+]?\d*[\.,/]?\d+", tail) if marker else None
    if match is None:
        return None
    number = match.group().replace(",", "")
    top, slash, bottom = number.partition("/")
    if not slash:
        return str(round(Decimal(number)))
    if top in ("", "+", "-"):
        return None
    return str(round(Fraction(int(top), int(bottom) or 1)))


def _metamath_latex(text: str) -> str | None:
    _, marker, tail = text.rpartition("The answer is: ")
    if not marker:
        return None
    return tail.split(".\n")[0].strip().removesuffix(".")


_DELIMITERS = ("The answer is: ", "The answer is ", "The final answer is: ", "The final answer is ", "#### ")


def _peft_suite(text: str) -> str:
    start, delimiter = max((text.rfind(delimiter), delimiter) for delimiter in _DELIMITERS)
    tail = text[start + len(delimiter) :] if start >= 0 else text
    return tail.strip().partition("\n")[0].strip(" .!?$%")


def _same_peft(value: str, gold: str) -> bool:
    def number(text: str) -> Decimal | Fraction | None:
        for kind in (Decimal, Fraction):
            try:
                return kind(text)
            except (InvalidOperation, ValueError, ZeroDivisionError):
                continue
        return None

    left, right = number(value), number(gold)
    if left is None or right is None:
        return value == gold
    return Fraction(left) == Fraction(right) if left == left and right == right else False


def _last_number(text: str) -> str | None:
    numbers = re.findall(r"-?\d+\.?\d*", text.replace(",", ""))
    return numbers[-1] if numbers else None


_KEYWORDS = re.compile(r"true|false|solution[12]|answer[1-5]|ending[1-4]|option[12]")


def _keyword_first(text: str) -> str | None:
    match = _KEYWORDS.search(text)
    return match.group() if match else None


def _lm_eval_strict(text: str) -> str | None:
    match = re.search(r"#### (-?[0-9.,]+)", text)
    return match.group(1) if match else None


def _lm_eval_flexible(text: str) -> str | None:
    numbers = re.findall(r"-?[$0-9.,]{2,}|-?[0-9]+", text)
    return numbers[-1] if numbers else None


def _same_lm_eval(value: str, gold: str) -> bool:
    def plain(text: str) -> str:
        return re.sub(r"\.$", "", re.sub(r"[,$]", "", text)).lower()

    return plain(value) == plain(gold)


def words(text: str) -> list[str]:
    """Return the numbers and words of a text in lower case, without punctuation.

    Examples:
        >>> words("The answer is **-3.5**, Mother-in-law!")
        ['the', 'answer', 'is', '-3.5', 'mother', 'in', 'law']
    """
    return re.findall(r"(?<!\w)[-+]?\d+(?:[.,:]\d+)*|\w+", text.casefold())


def _same_text(value: str, gold: str) -> bool:
    lines = [line for line in value.splitlines() if words(line)]
    wanted = words(gold)
    return any(words(line)[-len(wanted) :] == wanted for line in {*lines[:1], *lines[-1:]}) if wanted else False


EXTRACTORS: dict[str, Extractor] = {
    rule.name: rule
    for rule in (
        Extractor("hash_int", _hash_int, _same_number),
        Extractor("metamath", _metamath, _same_number),
        Extractor("metamath_latex", _metamath_latex, same_latex),
        Extractor("peft_suite", _peft_suite, _same_peft),
        Extractor("last_number", _last_number, _same_number),
        Extractor("keyword_first", _keyword_first, str.__eq__),
        Extractor("lm_eval_strict", _lm_eval_strict, _same_lm_eval),
        Extractor("lm_eval_flexible", _lm_eval_flexible, _same_lm_eval),
        Extractor("exact", str.strip, lambda value, gold: value == gold.strip()),
        Extractor("number", _last_number, _same_number),
        Extractor("text", str.strip, _same_text),
    )
}
