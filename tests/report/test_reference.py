"""The page of the report's keys says what the records say, and what a report has."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import pytest

from onnxvitq.api import Result
from onnxvitq.report.records import INLINE, OPTIONAL, SkippedFile, keyed
from onnxvitq.report.reference import HEAD, report_page, table_of


@dataclass(frozen=True)
class Inner:
    """What stands among the keys of another.

    Attributes:
        size: in MB.
    """

    size: float


@dataclass(frozen=True)
class Outer(Inner):
    """A record with everything that a field can be.

    Attributes:
        name: of the model, or
            of its file | folder.
        inner: its keys are the record's own.
        figures: its own figures.
        files: read from it; None where ``name`` says nothing.
        rank: None where there is none.
    """

    name: str = field(metadata=keyed("model"))
    inner: Inner = field(metadata=INLINE)
    figures: Mapping[str, float] = field(metadata=INLINE)
    files: tuple[SkippedFile, ...] | None
    rank: int | None = field(default=None, metadata=OPTIONAL)


def test_a_record_is_a_table_of_its_keys() -> None:
    assert table_of(Outer) == HEAD + (
        "| `size` | number | in MB. |\n"
        "| `model` | text | of the model, or of its file \\| folder. |\n"
        "| `...` | more keys | its own figures. |\n"
        "| `files` | list of [SkippedFile](#skippedfile) or null | read from it; null where `name` says nothing. |\n"
        "| `rank` | integer or absent | absent where there is none. |\n"
    )


def test_a_field_without_a_meaning_is_noticed() -> None:
    @dataclass(frozen=True)
    class Silent:
        """It says nothing of its field."""

        size: float

    with pytest.raises(KeyError, match="size"):
        table_of(Silent)


def test_every_key_of_a_report_is_on_the_page(quantized: Result) -> None:
    section = report_page().partition("\n## Report\n")[2].partition("\n## ")[0]
    assert set(quantized.report.to_dict()) <= set(re.findall(r"^\| `(\w+)` \|", section, flags=re.MULTILINE))


def test_every_link_leads_to_a_section() -> None:
    page = report_page()
    links = set(re.findall(r"\]\(#(\w+)\)", page))
    assert links
    assert links <= {title.lower() for title in re.findall(r"^###? (\w+)$", page, flags=re.MULTILINE)}
