"""What the doctor says: one finding a check."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

State = Literal["ok", "note", "problem", "not checked"]


@dataclass(frozen=True)
class Finding:
    """What a check came to.

    Attributes:
        check: its name, stable, for scripts: "redis", "webhook secret" ...
        where: "this machine", "server", "Label Studio" or "project 7".
        state: "note" is worth knowing but needs nothing; "not checked": something else has to work first.
        said: what is so, one sentence without its full stop.
        remedy: what to do; "" unless it is a problem.
    """

    check: str
    where: str
    state: State
    said: str
    remedy: str = ""


@dataclass(frozen=True)
class Subject:
    """Makes the findings about one place."""

    where: str

    def ok(self, check: str, said: str) -> Finding:
        """All is well."""
        return Finding(check, self.where, "ok", said)

    def note(self, check: str, said: str) -> Finding:
        """Worth knowing."""
        return Finding(check, self.where, "note", said)

    def problem(self, check: str, said: str, remedy: str) -> Finding:
        """Something is wrong."""
        return Finding(check, self.where, "problem", said, remedy)

    def skipped(self, check: str, said: str) -> Finding:
        """It could not be checked."""
        return Finding(check, self.where, "not checked", said)


Check = Callable[[], Iterable[Finding]]


@dataclass(frozen=True)
class Report:
    """All findings, in the order in which they were made."""

    findings: tuple[Finding, ...]

    @property
    def problems(self) -> Sequence[Finding]:
        """What is wrong."""
        return [finding for finding in self.findings if finding.state == "problem"]

    @property
    def healthy(self) -> bool:
        """Whether nothing is wrong, and all could be checked."""
        return all(finding.state in ("ok", "note") for finding in self.findings)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"healthy": self.healthy, "findings": [asdict(finding) for finding in self.findings]}


def examine(checks: Iterable[tuple[str, str, Check]]) -> Iterator[Finding]:
    """Make checks one after the other; one that fails itself is a finding, and the others are made all the same.

    Args:
        checks: name, where, and the check.
    """
    for name, where, check in checks:
        try:
            yield from check()
        except Exception as error:  # the doctor must come to an end, whatever it meets
            yield Subject(where).problem(
                name, f"the check itself failed: {type(error).__name__}: {error}", "please report this as a bug"
            )
