"""Every error that the product raises on purpose is explained on the troubleshooting page, by the words of its message."""

import ast
import re
from dataclasses import dataclass

from documentation import ROOT

from onnxvitq.core import errors

PAGE = (ROOT / "docs" / "troubleshooting.md").read_text()
CLASSES = {name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, Exception)}
GAP = "…"  # what stands for a value in a message
SHORTEST = 6  # characters of a phrase that tells one message from another


@dataclass(frozen=True, slots=True)
class Raised:
    """One place that makes an error: where it is, its class, and the texts that its message may be."""

    where: str
    error: str
    problems: tuple[str, ...]


def raised_in(source: str, name: str) -> list[Raised]:
    """Every place of a module that makes an error of ours, with a text for the problem; gaps stand for values."""
    tree = ast.parse(source)
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    sites = []
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        called = call.func.id if isinstance(call.func, ast.Name) else ""
        if called in CLASSES and len(call.args) > 1:
            around = [
                function for function in functions if function.lineno <= call.lineno <= (function.end_lineno or 0)
            ]
            sites.append(Raised(f"{name}:{call.lineno}", called, tuple(_texts(call.args[1], around))))
    return sites


def _texts(node: ast.expr, around: list[ast.FunctionDef]) -> list[str]:
    """What an expression may be as a text; a local name is looked up in the functions around it."""
    if isinstance(node, ast.Constant):
        return [str(node.value)]
    if isinstance(node, ast.JoinedStr):
        return ["".join(str(part.value) if isinstance(part, ast.Constant) else GAP for part in node.values)]
    if isinstance(node, ast.IfExp):
        return [*_texts(node.body, around), *_texts(node.orelse, around)]
    if isinstance(node, ast.BinOp):
        return [a + b for a in _texts(node.left, around) for b in _texts(node.right, around)]
    if isinstance(node, ast.Name):
        assigned = [
            found
            for function in around
            for found in ast.walk(function)
            if isinstance(found, ast.Assign) and any(isinstance(t, ast.Name) and t.id == node.id for t in found.targets)
        ]
        return [text for found in assigned for text in _texts(found.value, [])] or [GAP]
    return [GAP]


def phrase_of(problem: str) -> str:
    """The longest run of words of a message between two values."""
    return max((re.sub(r",? got$", "", part.strip(" :,;()")) for part in problem.split(GAP)), key=len)


def plain(text: str) -> str:
    """A text without Markdown's marks and with single spaces."""
    return re.sub(r"\s+", " ", re.sub(r"[`*\\]", "", text))


def unexplained(page: str, sites: list[Raised]) -> list[str]:
    """Places whose message has a phrase that the page lacks."""
    known = plain(page)
    phrases = [(site, phrase_of(problem)) for site in sites for problem in site.problems]
    return [
        f"{site.where}: {site.error}: {phrase}"
        for site, phrase in phrases
        if len(phrase) >= SHORTEST and plain(phrase) not in known
    ]


def all_sites() -> list[Raised]:
    """Of the whole package."""
    return [
        site
        for path in sorted((ROOT / "onnxvitq").rglob("*.py"))
        for site in raised_in(path.read_text(), str(path.relative_to(ROOT)))
    ]


def test_every_message_is_explained() -> None:
    sites = all_sites()
    assert len(sites) > 150
    assert unexplained(PAGE, sites) == [], "say in docs/troubleshooting.md why each of these is raised and what to do"


def test_every_class_has_its_section() -> None:
    headings = re.findall(r"^## (\w+)$", PAGE, re.MULTILINE)
    assert set(headings) >= CLASSES


def test_a_message_that_the_page_lacks_is_noticed() -> None:
    source = (
        "def load(path):\n"
        "    problem = f'{path} is made of cheese' if path else 'nothing was given'\n"
        "    raise ModelError(str(path), problem, 'eat it')\n"
    )
    assert [entry.split(": ")[-1] for entry in unexplained("nothing was given", raised_in(source, "x.py"))] == [
        "is made of cheese"
    ]
