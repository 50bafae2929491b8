"""What a client is told when a request cannot be answered: a status and a reason, never a traceback.

ApiError
├── BadRequestError     400: not JSON
├── UnauthorisedError   401: no credentials, or wrong ones
├── NotFoundError       404: there is no such thing
├── TooLargeError       413: the body is over the limit
├── InvalidRequestError 422: JSON, but a value is missing or of the wrong kind; it is named
└── UnavailableError    503: cannot be answered now; the reason says what is being waited for
"""

from __future__ import annotations

from collections.abc import Mapping

REALM = "label-studio-vlm-backend"


class ApiError(Exception):
    """A request that gets an error instead of an answer.

    Attributes:
        status: HTTP status.
        headers: of the response.
    """

    status = 400
    headers: Mapping[str, str] = {}


class BadRequestError(ApiError):
    """The body is not JSON."""


class UnauthorisedError(ApiError):
    """The request carries no credentials, or wrong ones."""

    status = 401
    headers = {"WWW-Authenticate": f'Basic realm="{REALM}", charset="UTF-8"'}  # noqa: RUF012 - a mapping, never changed


class NotFoundError(ApiError):
    """What the address names is not there."""

    status = 404


class TooLargeError(ApiError):
    """The body is larger than this server accepts."""

    status = 413


class InvalidRequestError(ApiError):
    """A value of the request is missing or of the wrong kind."""

    status = 422


class UnavailableError(ApiError):
    """The request cannot be answered now."""

    status = 503
    headers = {"Retry-After": "5"}  # noqa: RUF012
