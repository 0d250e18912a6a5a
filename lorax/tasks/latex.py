r"""Answers of the MATH benchmark: the last \boxed of a solution, and when two are the same.

The rules are those of Hendrycks et al. (arXiv:2103.03874, `math_equivalence.py`): how a fraction or a root is written,
units, degrees, percent and dollar signs, white space and a leading `x =` do not count; value does. Torch-free.
"""

from __future__ import annotations

import re


def last_boxed(solution: str) -> str | None:
    r"""Return what the last \boxed or \fbox of a solution holds, or None.

    Examples:
        >>> last_boxed(r"So $x = \boxed{\frac{1}{2}}$.")
        '\\frac{1}{2}'
    """
    start = max(solution.rfind("\\boxed"), solution.rfind("\\fbox"))
    brace = solution.find("{", start) if start >= 0 else -1
    if start >= 0 and (brace < 0 or solution[start:brace].strip() not in ("\\boxed", "\\fbox")):
        plain = re.match(r"\\boxed\s+([^\s$]+)", solution[start:])
        return plain[1] if plain else None
    depth = 0
    for place in range(brace, len(solution)) if brace >= 0 else ():
        depth += (solution[place] == "{") - (solution[place] == "}")
        if not depth:
            return solution[brace + 1 : place]
    return None


def same_latex(left: str, right: str) -> bool:
    r"""Return whether two answers are written alike, by the rules of the benchmark.

    Examples:
        >>> same_latex(r"\dfrac12", r"\frac{1}{2}"), same_latex("x = 0.5", "1/2"), same_latex("2", "2.5")
        (True, True, False)
    """
    return _plain(left) == _plain(right)


def _plain(text: str) -> str:
    text = text.replace("\n", "").replace("\\!", "").replace("\\\\", "\\")
    text = text.replace("tfrac", "frac").replace("dfrac", "frac").replace("\\left", "").replace("\\right", "")
    text = text.replace("^{\\circ}", "").replace("^\\circ", "").replace("\\$", "")
    head, _, tail = text.partition("\\text{ ")  # units on the right
    text = head if tail else text
    text = text.replace("\\%", "").replace("%", "").replace(" .", " 0.").replace("{.", "{0.")
    if not text:
        return text
    text = "0" + text if text[0] == "." else text
    before, equals, after = text.partition("=")
    if equals and "=" not in after and len(before) <= 2:
        text = after
    text = re.sub(r"\\sqrt(?=[^{\s])(.)", r"\\sqrt{\1}", text).replace(" ", "")
    text = re.sub(r"\\frac([^{])([^{])", r"\\frac{\1}{\2}", text)
    text = re.sub(r"\\frac([^{])\{", r"\\frac{\1}{", text)
    text = re.sub(r"(\\frac\{[^{}]*\})([^{])", r"\1{\2}", text)
    if text == "0.5":
        return "\\frac{1}{2}"
    halves = re.fullmatch(r"(-?\d+)/(-?\d+)", text)
    return f"\\frac{{{int(halves[1])}}}{{{int(halves[2])}}}" if halves else text
