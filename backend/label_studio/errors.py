"""What can go wrong with Label Studio's API.

    LabelStudioError                    base; `status` is the HTTP status, None where no answer came
    |-- LabelStudioUnreachableError     no answer: name, port, TLS, time-out            (temporary)
    |-- LabelStudioServerError          5xx, or an answer that is not JSON              (temporary)
    |-- LabelStudioAuthError            401: the token is missing, wrong, revoked or of a switched-off kind
    |-- LabelStudioForbiddenError       403: the user may not, or an address is blocked
    |-- LabelStudioNotFoundError        404
    `-- LabelStudioRejectedError        any other 4xx: Label Studio says what it does not accept

Messages name the address (without query and credentials), what Label Studio said, and the remedy. They never
hold a token.
"""

from __future__ import annotations


class LabelStudioError(Exception):
    """A call to Label Studio failed.

    Attributes:
        status: HTTP status of the answer, None where there was none.
        temporary: the same call may work later without anyone's doing.
    """

    temporary = False

    def __init__(self, message: str, *, status: int | None = None) -> None:
        """Keep the status beside the message."""
        super().__init__(message)
        self.status = status


class LabelStudioUnreachableError(LabelStudioError):
    """No answer came."""

    temporary = True


class LabelStudioServerError(LabelStudioError):
    """Label Studio failed, or something else answers at its address."""

    temporary = True


class LabelStudioAuthError(LabelStudioError):
    """The token was not accepted."""


class LabelStudioForbiddenError(LabelStudioError):
    """The token's user may not do this, or Label Studio blocks the address."""


class LabelStudioNotFoundError(LabelStudioError):
    """There is no such thing, or the token's user may not know of it."""


class LabelStudioRejectedError(LabelStudioError):
    """Label Studio does not accept what was sent."""
