"""API tokens -> the `Authorization` header.

Label Studio knows two kinds. A legacy token (40 hex digits) is sent as `Token ...`; it is off by default in new
versions. A personal access token is a JWT of type "refresh": it is never sent with a call but exchanged for an
access token that lives 300 seconds and is sent as `Bearer ...`.
"""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Callable
from typing import Any

_EARLY_S = 45.0
_ASSUMED_LIFE_S = 300.0


def jwt_claims(token: str) -> dict[str, Any] | None:
    """The unverified claims of a JWT; None where the token is none. Only Label Studio can verify them."""
    parts = token.split(".")
    if len(parts) != 3 or not all(parts):
        return None
    decoded = []
    for part in parts[:2]:
        try:
            decoded.append(json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))))
        except ValueError:
            return None
    header, claims = decoded
    return claims if isinstance(header, dict) and "alg" in header and isinstance(claims, dict) else None


class TokenSource:
    """Gives the `Authorization` header for calls, exchanging the token where it must.

    Safe to share between threads: one exchange serves all that wait.

    Args:
        api_key: what the user copied from Label Studio; surrounding white space is dropped.
        exchange: trades a personal access token for an access token; called with the lock held.
        clock: seconds since the epoch.
    """

    def __init__(self, api_key: str, exchange: Callable[[str], str], *, clock: Callable[[], float] = time.time) -> None:
        """Look at the kind of token; nothing is sent yet."""
        self._api_key = api_key.strip()
        self._exchange = exchange
        self._clock = clock
        self._lock = threading.Lock()
        self._access: str | None = None
        self._good_until = 0.0
        claims = jwt_claims(self._api_key)
        self._kind = "legacy" if claims is None else str(claims.get("token_type", "refresh"))

    @property
    def is_personal(self) -> bool:
        """Whether the token is one that must be exchanged."""
        return self._kind not in ("legacy", "access")

    def header(self) -> str:
        """The header's value, valid for at least some seconds.

        Raises:
            LabelStudioError: the exchange failed.
        """
        if self._kind == "legacy":
            return f"Token {self._api_key}"
        if self._kind == "access":
            return f"Bearer {self._api_key}"
        with self._lock:
            if self._access is None or self._clock() >= self._good_until:
                access = self._exchange(self._api_key)
                claims = jwt_claims(access) or {}
                now = self._clock()
                # Only the life span is read: this machine's clock and Label Studio's may differ.
                issued, expires = claims.get("iat"), claims.get("exp")
                life = (
                    float(expires) - float(issued)
                    if isinstance(issued, (int, float)) and isinstance(expires, (int, float))
                    else _ASSUMED_LIFE_S
                )
                self._access, self._good_until = access, now + max(life - _EARLY_S, life / 2)
            return f"Bearer {self._access}"

    def renew(self, refused: str) -> bool:
        """Forget the access token after a 401; False where another try is pointless.

        Args:
            refused: the header that was refused; a newer one that another thread has fetched is kept.
        """
        if not self.is_personal:
            return False
        with self._lock:
            if f"Bearer {self._access}" == refused:
                self._access = None
        return True
