"""How calls reach Label Studio and answers come back: tokens, tries, pages, and an error for what goes wrong.

Blocking, safe to share between threads. Nothing here logs a payload or a token.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import Any, Self, cast
from urllib.parse import urlsplit

import httpx

from backend.label_studio.errors import (
    LabelStudioAuthError,
    LabelStudioError,
    LabelStudioForbiddenError,
    LabelStudioNotFoundError,
    LabelStudioRejectedError,
    LabelStudioServerError,
    LabelStudioUnreachableError,
)
from backend.label_studio.tokens import TokenSource

Json = dict[str, Any]

OTHER_SERVICE = "Is LABEL_STUDIO_URL the address of Label Studio?"

IMPORT_PATIENCE = 3
"""An import is waited for so many times as long as other calls: Label Studio stores all of it before it answers."""

_RETRY_WAITS_S = (0.3, 1.0)
_AWAY = (502, 503, 504)
_SAID_CHARS = 500


class Transport:
    """Carries calls to one Label Studio as one user.

    Args:
        base_url: Label Studio's address, like http://localhost:8080 (with its path where it has one).
        api_key: personal access token or legacy token; None calls without one.
        timeout_s: seconds for each wait for the answer; `IMPORT_PATIENCE` times as many for that to an import.
        transport: what carries the requests; for tests and for proxies.
        sleep: how to wait between tries.

    Use it as a context manager, or call `close`.
    """

    def __init__(
        self,
        base_url: str,
        api_key: str | None,
        *,
        timeout_s: float = 30.0,
        transport: httpx.BaseTransport | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Prepare; nothing is sent yet."""
        self.base_url = base_url.rstrip("/")
        self._sleep = sleep
        self._timeout_s = timeout_s
        self._http = httpx.Client(
            base_url=self.base_url,
            transport=transport,
            headers={"Accept": "application/json", "User-Agent": "label-studio-vlm-backend"},
        )
        self._tokens = TokenSource(api_key, self._exchange) if api_key else None

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the connections."""
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def authorization(self) -> str | None:
        """The `Authorization` header for a call outside this class, to this Label Studio only.

        Raises:
            LabelStudioError: a personal access token could not be exchanged.
        """
        return None if self._tokens is None else self._tokens.header()

    def renew_authorization(self, refused: str) -> bool:
        """Note that a header from `authorization` was answered with 401.

        Args:
            refused: the header's value.

        Returns:
            Whether `authorization` may give a better one now; False for tokens that cannot be exchanged.
        """
        return self._tokens is not None and self._tokens.renew(refused)

    @property
    def token_kind(self) -> str:
        """What the API key is, for people: it is told from its form, Label Studio is not asked."""
        if self._tokens is None:
            return "no token"
        return "personal access token" if self._tokens.is_personal else "legacy token"

    def _get(self, path: str, params: Mapping[str, Any] | None = None) -> Json:
        return as_object(self._call("GET", path, params=params), path)

    def _list(self, path: str, params: Mapping[str, Any]) -> list[Json]:
        answer = self._call("GET", path, params=params)
        if isinstance(answer, Mapping) and isinstance(answer.get("results"), list):
            answer = answer["results"]
        if not isinstance(answer, list):
            raise LabelStudioServerError(f"Label Studio's answer to {path} is no list. {OTHER_SERVICE}")
        return cast("list[Json]", answer)

    def _send(self, method: str, path: str, body: Any) -> Json:
        return as_object(self._call(method, path, body=body), path)

    def _import(self, path: str, *, body: Any = None, files: Any = None) -> Json:
        return as_object(self._call("POST", path, body=body, files=files, patience=IMPORT_PATIENCE), path)

    def _pages(self, path: str, params: Mapping[str, Any], *, items: str, page_size: int) -> Iterator[Json]:
        page = 1
        while True:
            try:
                answer = self._get(path, {**params, "page": page, "page_size": page_size})
            except LabelStudioNotFoundError:
                # A page past the end: tasks were deleted while we read.
                if page == 1:
                    raise
                return
            found = answer.get(items)
            if not isinstance(found, list):
                raise LabelStudioServerError(f"Label Studio's answer to {path} holds no {items}. {OTHER_SERVICE}")
            yield from found
            if len(found) < page_size:
                return
            page += 1

    def _call(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, Any] | None = None,
        body: Any = None,
        files: Any = None,
        patience: float = 1,
    ) -> Any:
        """One call, with its tries: again after a refused access token, and for reads when nobody answers."""
        waits = iter(_RETRY_WAITS_S if method == "GET" else ())
        renewed = False
        while True:
            header = self.authorization()
            try:
                response = self._request(method, path, header, params=params, body=body, files=files, patience=patience)
            except LabelStudioUnreachableError:
                wait = next(waits, None)
                if wait is None:
                    raise
                self._sleep(wait)
                continue
            if response.status_code == 401 and header and not renewed:
                renewed = True
                if self.renew_authorization(header):
                    continue
            if response.status_code in _AWAY:
                wait = next(waits, None)
                if wait is not None:
                    self._sleep(wait)
                    continue
            return self._read(response, path)

    def _request(
        self,
        method: str,
        path: str,
        header: str | None,
        *,
        params: Any = None,
        body: Any = None,
        files: Any = None,
        patience: float = 1,
    ) -> httpx.Response:
        headers = {"Authorization": header} if header else {}
        timeout = _timeout(patience * self._timeout_s)
        try:
            return self._http.request(
                method, path, params=params, json=body, files=files, headers=headers, timeout=timeout
            )
        except httpx.TimeoutException:
            raise LabelStudioUnreachableError(
                f"Label Studio at {self.base_url} did not answer {_shown(path)} in time. Is it overloaded?"
            ) from None
        except (httpx.TransportError, httpx.InvalidURL) as error:
            raise LabelStudioUnreachableError(
                f"Label Studio at {self.base_url} cannot be reached ({error}). "
                "Start it, or set LABEL_STUDIO_URL to its address as this machine sees it"
            ) from None

    def _read(self, response: httpx.Response, path: str) -> Any:
        status = response.status_code
        if status < 300:
            if status == 204 or not response.content:
                return {}
            try:
                return response.json()
            except ValueError:
                raise LabelStudioServerError(
                    f"{self.base_url} answers {_shown(path)} with something other than JSON. {OTHER_SERVICE}",
                    status=status,
                ) from None
        if status < 400:
            target = urlsplit(response.headers.get("location", ""))
            where = f"{target.scheme}://{target.netloc.rpartition('@')[2]}" if target.netloc else target.path
            raise LabelStudioRejectedError(
                f"Label Studio at {self.base_url} redirects {_shown(path)} to {where}. "
                "Set LABEL_STUDIO_URL to the address that answers itself",
                status=status,
            )
        raise self._error(response, path)

    def _error(self, response: httpx.Response, path: str) -> LabelStudioError:
        status, said = response.status_code, _said(response)
        shown = f"{response.request.method} {_shown(path)}"
        if status == 401:
            if self._tokens is None:
                remedy = "Set LABEL_STUDIO_API_KEY to a personal access token (Account & Settings)"
            elif self._tokens.is_personal:
                remedy = "Create a new personal access token (Account & Settings) and set LABEL_STUDIO_API_KEY"
            else:
                remedy = (
                    "Legacy tokens are off by default: use a personal access token (Account & Settings), or allow "
                    "legacy tokens in the organization's settings"
                )
            return LabelStudioAuthError(f"Label Studio refuses the token for {shown}: {said}. {remedy}", status=status)
        if status == 403:
            return LabelStudioForbiddenError(f"Label Studio forbids {shown}: {said}", status=status)
        if status == 404:
            return LabelStudioNotFoundError(
                f"Label Studio knows nothing at {shown} for this user: {said}. Check the id and the token's user",
                status=status,
            )
        if status >= 500:
            return LabelStudioServerError(f"Label Studio failed at {shown} with {status}: {said}", status=status)
        return LabelStudioRejectedError(f"Label Studio does not accept {shown} ({status}): {said}", status=status)

    def _exchange(self, personal_token: str) -> str:
        """Trade a personal access token for an access token."""
        path = "/api/token/refresh/"
        response = self._request("POST", path, None, body={"refresh": personal_token})
        if response.status_code == 401:
            raise LabelStudioAuthError(
                f"Label Studio does not accept the personal access token: {_said(response)}. Create a new one "
                "(Account & Settings) and set LABEL_STUDIO_API_KEY",
                status=401,
            )
        access = as_object(self._read(response, path), path).get("access")
        if not isinstance(access, str):
            raise LabelStudioServerError(f"Label Studio's answer to {path} holds no access token. {OTHER_SERVICE}")
        return access


def as_object(answer: Any, path: str) -> Json:
    """An answer that must be a JSON object; anything else raises LabelStudioServerError."""
    if not isinstance(answer, dict):
        raise LabelStudioServerError(f"Label Studio's answer to {_shown(path)} is no object. {OTHER_SERVICE}")
    return answer


def _timeout(timeout_s: float) -> httpx.Timeout:
    # Whoever listens answers a connection at once, however busy.
    return httpx.Timeout(timeout_s, connect=min(timeout_s, 10.0))


def _shown(path: str) -> str:
    return path.partition("?")[0]


def _said(response: httpx.Response) -> str:
    """What Label Studio gives as the reason, in one line."""
    try:
        answer = response.json()
    except ValueError:
        return f"HTTP {response.status_code}"
    if isinstance(answer, dict):
        detail = str(answer.get("detail") or answer.get("error") or "").rstrip(".")
        errors = answer.get("validation_errors")
        if errors:
            listed = json.dumps(errors, ensure_ascii=False)
            return f"{detail}: {listed}"[:_SAID_CHARS] if detail else listed[:_SAID_CHARS]
        if detail:
            return detail[:_SAID_CHARS]
    return json.dumps(answer, ensure_ascii=False)[:_SAID_CHARS]
