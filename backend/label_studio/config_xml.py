"""Labelling config as text -> a small tree of tags that know their line, without XML's dangers.

Label Studio hands the config to the backend as a string. Entities and document types are refused (they can
read files and grow without bound), as are oversized and very deep documents. Tag names keep their spelling;
`Tag.kind` is the lower-cased name, since Label Studio's editor does not mind the case.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from xml.parsers import expat

MAX_CONFIG_CHARS = 2_000_000
MAX_DEPTH = 100


class LabelConfigError(ValueError):
    """The labelling config cannot be used; the message names line, value and remedy.

    Attributes:
        problem: what is wrong, with the value.
        remedy: what to do.
        line: 1-based line in the config, None where no single line is to blame.
    """

    def __init__(self, problem: str, remedy: str, *, line: int | None = None) -> None:
        """Compose the message as `labelling config, line N: problem. remedy.`"""
        where = "labelling config" if line is None else f"labelling config, line {line}"
        super().__init__(f"{where}: {problem}. {remedy}{'' if remedy.endswith('?') else '.'}")
        self.problem = problem
        self.remedy = remedy
        self.line = line


@dataclass
class Tag:
    """One element: its name as written, its attributes, its line, and what it contains."""

    name: str
    attributes: dict[str, str]
    line: int
    parent: Tag | None = None
    children: list[Tag] = field(default_factory=list)

    @property
    def kind(self) -> str:
        """The name in lower case."""
        return self.name.lower()

    def get(self, attribute: str) -> str | None:
        """The attribute's value, None where the tag does not carry it."""
        return self.attributes.get(attribute)

    def ancestors(self) -> Iterator[Tag]:
        """The tags around this one, the nearest first."""
        above = self.parent
        while above is not None:
            yield above
            above = above.parent

    def is_inside(self, kind: str) -> bool:
        """Whether a tag of that kind is around this one."""
        return any(tag.kind == kind for tag in self.ancestors())

    def walk(self) -> Iterator[Tag]:
        """This tag and everything inside, in document order."""
        yield self
        for child in self.children:
            yield from child.walk()


def read_tags(xml: str) -> Tag:
    """Parse a labelling config.

    Args:
        xml: the config as the project owner wrote it.

    Returns:
        The root tag.

    Raises:
        LabelConfigError: not text, empty, too large or deep, not well-formed, or with a document type.
    """
    if not isinstance(xml, str):
        raise LabelConfigError(f"it is a {type(xml).__name__}, not text", "Send the XML as a string")
    if not xml.strip():
        raise LabelConfigError("it is empty", "Write one in Label Studio under Settings > Labeling Interface")
    if len(xml) > MAX_CONFIG_CHARS:
        raise LabelConfigError(
            f"it has {len(xml)} characters, more than {MAX_CONFIG_CHARS}", "Shorten it or split the project"
        )
    builder = _TreeBuilder()
    try:
        builder.parser.Parse(xml.strip().encode("utf-8"), True)
    except expat.ExpatError as error:
        raise LabelConfigError(
            f"not well-formed XML: {expat.ErrorString(error.code)} (column {error.offset + 1})",
            "Close every tag, quote every attribute and write & as &amp;",
            line=error.lineno + _lines_stripped(xml),
        ) from None
    except UnicodeEncodeError:
        raise LabelConfigError("it holds half of a character pair", "Remove the broken character") from None
    if builder.root is None:  # expat reports a document without a root itself
        raise LabelConfigError("it holds no tag", "Start it with <View>")
    shift = _lines_stripped(xml)
    if shift:
        for tag in builder.root.walk():
            tag.line += shift
    return builder.root


def _lines_stripped(xml: str) -> int:
    """Lines of white space before the first tag: expat wants a declaration to come first."""
    return xml[: len(xml) - len(xml.lstrip())].count("\n")


class _TreeBuilder:
    """Builds the tree from expat's events."""

    def __init__(self) -> None:
        self.root: Tag | None = None
        self._open: list[Tag] = []
        # The text is encoded as UTF-8 here; what its declaration claims does not count.
        self.parser = expat.ParserCreate(encoding="utf-8")
        self.parser.StartElementHandler = self._start
        self.parser.EndElementHandler = self._end
        self.parser.StartDoctypeDeclHandler = self._refuse_doctype
        self.parser.EntityDeclHandler = self._refuse_doctype

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        line = self.parser.CurrentLineNumber
        if len(self._open) >= MAX_DEPTH:
            raise LabelConfigError(f"<{name}> is nested more than {MAX_DEPTH} deep", "Flatten the views", line=line)
        parent = self._open[-1] if self._open else None
        tag = Tag(name, dict(attributes), line, parent)
        if parent is None:
            self.root = tag
        else:
            parent.children.append(tag)
        self._open.append(tag)

    def _end(self, _name: str) -> None:
        self._open.pop()

    def _refuse_doctype(self, *_: object) -> None:
        raise LabelConfigError(
            "a document type or entity is declared",
            "Remove <!DOCTYPE ...> and <!ENTITY ...>; a labelling config needs neither",
            line=self.parser.CurrentLineNumber,
        )
