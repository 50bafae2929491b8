"""Who may call: Basic auth on every route but `/health` and `/ready`; webhooks may carry a secret instead.

Label Studio sends Basic auth with its calls to a backend (health, setup, predict, "Start Training"), but its
webhooks carry only the headers that were stored with them. `vlm connect` stores the secret there. So:

| set on this server | what a webhook event needs |
|---|---|
| nothing | nothing |
| the secret | the secret, in `X-VLM-Webhook-Secret`; START_TRAINING comes without it and passes |
| Basic auth | Basic auth: events of webhooks are refused until the secret is set too |
| both | either |
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac

from backend.api.errors import UnauthorisedError
from backend.settings import Settings

SECRET_HEADER = "X-VLM-Webhook-Secret"

BASIC, SECRET = "basic", "webhookSecret"
"""What the OpenAPI document calls the two kinds of credentials."""

Security = list[dict[str, list[str]]]
"""Ways to be let in, as OpenAPI says it; an empty dictionary is "without any", an empty list "nothing is asked"."""


class Gate:
    """Checks credentials in constant time."""

    def __init__(self, settings: Settings) -> None:
        """Keep digests of the credentials that the settings ask for."""
        self._basic: bytes | None = None
        if settings.basic_auth_user is not None and settings.basic_auth_pass is not None:
            password = settings.basic_auth_pass.get_secret_value()
            self._basic = _digest(f"{settings.basic_auth_user}:{password}".encode())
        self._secret = (
            None if settings.webhook_secret is None else _digest(settings.webhook_secret.get_secret_value().encode())
        )

    @property
    def security(self) -> Security:
        """What a call that is not a webhook needs."""
        return [] if self._basic is None else [{BASIC: []}]

    @property
    def webhook_security(self) -> Security:
        """What a webhook needs."""
        if self._basic is None:
            return [] if self._secret is None else [{}, {SECRET: []}]  # the button comes without the secret
        return [{BASIC: []}] if self._secret is None else [{BASIC: []}, {SECRET: []}]

    def passes(self, authorization: str | None) -> bool:
        """Whether a call carries the credentials that this server asks for; true where it asks for none."""
        return self._basic is None or self._is_basic(authorization)

    def check(self, authorization: str | None) -> None:
        """Let a call pass that is not a webhook.

        Args:
            authorization: the header's value, or None.

        Raises:
            UnauthorisedError: it lacks the credentials that this server asks for.
        """
        if self.passes(authorization):
            return
        raise UnauthorisedError(
            "wrong user or password: write BASIC_AUTH_USER and BASIC_AUTH_PASS of this server into the model's "
            "settings in Label Studio"
        )

    def check_webhook(self, authorization: str | None, secret: str | None, *, action: str | None = None) -> None:
        """Let a webhook pass; the module's docstring has the rule.

        Args:
            authorization: the header's value, or None.
            secret: value of `X-VLM-Webhook-Secret`, or None.
            action: of the event; None before the body is read, and then what may depend on it passes.

        Raises:
            UnauthorisedError: it lacks the credentials that this server asks for.
        """
        if self._is_basic(authorization) or self._is_secret(secret):
            return
        if self._basic is None and self._secret is None:
            return
        if self._basic is None and action in (None, "START_TRAINING"):
            return
        if self._secret is None:
            raise UnauthorisedError(
                "this server asks for Basic auth, which webhooks cannot carry: set VLM_WEBHOOK_SECRET and run "
                "`vlm connect` for the project"
            )
        raise UnauthorisedError(
            f"the webhook lacks the right {SECRET_HEADER}: run `vlm connect` for the project, it writes the "
            "server's VLM_WEBHOOK_SECRET there"
        )

    def _is_basic(self, authorization: str | None) -> bool:
        if self._basic is None or authorization is None:
            return False
        scheme, _, encoded = authorization.partition(" ")
        if scheme.lower() != "basic":
            return False
        try:
            given = base64.b64decode(encoded.strip(), validate=True)
        except (binascii.Error, ValueError):
            return False
        return hmac.compare_digest(_digest(given), self._basic)

    def _is_secret(self, secret: str | None) -> bool:
        if self._secret is None or secret is None:
            return False
        # Starlette decodes headers as latin-1; a secret beyond ASCII was sent as UTF-8.
        return hmac.compare_digest(_digest(secret.encode("latin-1", "replace")), self._secret)


def _digest(value: bytes) -> bytes:
    """Equal lengths, so that comparing does not tell how long a password is."""
    return hashlib.sha256(value).digest()
