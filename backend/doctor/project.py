"""Checks of one project, as Label Studio has it: connection, webhook, versions' names, labelling config.

The right state is told by `backend.label_studio.connection`, which `vlm connect` uses too.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import httpx

from backend.doctor.findings import Finding, Subject
from backend.label_studio.client import LabelStudioClient
from backend.label_studio.config import LabelConfigError, parse_label_config
from backend.label_studio.connect import explained
from backend.label_studio.connection import (
    CONNECTED,
    FIRST_TITLE,
    entry_differences,
    is_version,
    own_entries,
    plain,
    same_url,
    secret_of,
    shown,
    sort_webhooks,
    wanted_entry,
    wanted_webhook,
    webhook_differences,
    webhook_url,
)
from backend.label_studio.errors import LabelStudioError
from backend.label_studio.transport import Json
from backend.plans import ExtraParams
from backend.settings import Settings
from backend.versions import read_version_name

_LOOKED_AT = 20
"""Tasks whose predictions are looked at, the first ones."""


@dataclass(frozen=True)
class ProjectDoctor:
    """Examines projects.

    Attributes:
        client: of Label Studio.
        settings: that the server runs with.
        backend_url: this backend's address as Label Studio reaches it.
        http: for the running server; without authentication of its own.
        server_url: where this machine reaches it.
    """

    client: LabelStudioClient
    settings: Settings
    backend_url: str
    http: httpx.Client
    server_url: str

    def examine(self, project_id: int) -> Iterator[Finding]:
        """All checks of one project."""
        subject = Subject(f"project {project_id}")
        try:
            project = self.client.project(project_id)
            entries = self.client.ml_backends(project_id)  # makes Label Studio call each
            hooks = self.client.webhooks(project_id)
        except LabelStudioError as error:
            yield subject.problem("project", str(error), "check its number, and whether the token's user may see it")
            return
        yield from self._config(subject, project_id, project)
        ours = own_entries(entries, self.backend_url)
        if not ours:
            yield subject.problem("connection", self._not_connected(entries), self._connect(project_id))
        else:
            yield from self._connection(subject, project_id, ours, entries)
            yield from self._versions(subject, project_id, project, ours[0])
        yield from self._webhooks(subject, project_id, hooks, entries, connected=bool(ours))

    def _connect(self, project_id: int) -> str:
        return f"`vlm connect --project {project_id} --backend-url {self.backend_url}`"

    @staticmethod
    def _not_connected(entries: Sequence[Json]) -> str:
        others = ", ".join(shown(entry.get("url")) for entry in entries)
        return "it is not connected to this backend" + (f", but to {others}" if others else "")

    def _config(self, subject: Subject, project_id: int, project: Json) -> Iterator[Finding]:
        try:
            extra = ExtraParams(self.settings.data_dir).of(project_id)
            plan = parse_label_config(str(project.get("label_config") or ""), extra)
        except LabelConfigError as error:
            yield subject.problem("labelling config", str(error), "mend it under Settings > Labeling Interface")
            return
        if not plan.controls:
            yield subject.problem(
                "labelling config",
                "it has nothing that can be predicted: " + "; ".join(item.reason for item in plan.ignored[:3]),
                "`vlm check-config FILE` says why; docs/labelling-config.md lists the tags",
            )
        elif not project.get("show_collab_predictions"):
            yield subject.problem(
                "predictions shown",
                "annotators do not see predictions (show_collab_predictions)",
                self._connect(project_id),
            )
        else:
            controls = ", ".join(control.from_name for control in plan.controls)
            yield subject.ok("labelling config", f"predicted for: {controls}")

    # The connection -----------------------------------------------------------------------------------------
    def _connection(
        self, subject: Subject, project_id: int, ours: Sequence[Json], entries: Sequence[Json]
    ) -> Iterator[Finding]:
        entry, healthy = ours[0], True
        if entries[0] not in ours:
            healthy = False
            yield subject.problem(
                "connection",
                f'Label Studio uses only the first backend of a project, "{entries[0].get("title")}" at '
                f"{shown(entries[0].get('url'))}",
                "remove it under Settings > Model",
            )
        for extra in ours[1:]:
            healthy = False
            yield subject.problem(
                "connection",
                f"a second connection to this backend, {shown(extra.get('url'))}",
                self._connect(project_id),
            )
        differs = entry_differences(entry, wanted_entry(self.backend_url, self.settings.basic_auth))
        if "url" in differs and not same_url(entry.get("url"), self.backend_url):
            healthy = False
            yield subject.problem(
                "address",
                f"it is connected to {shown(entry.get('url'))}, and this backend is at {self.backend_url}",
                f"{self._connect(project_id)}, or set VLM_BACKEND_URL to the former",
            )
        differs = [name for name in differs if name != "url"]
        if differs:
            healthy = False
            names = ", ".join(name.replace("_", " ") for name in differs)
            yield subject.problem("connection", f"its settings differ: {names}", self._connect(project_id))
        if entry.get("state") != CONNECTED:
            yield self._unreachable(subject, project_id, entry)
        elif healthy:
            yield subject.ok("connection", f"Label Studio reaches {self.backend_url} and is answered")

    def _unreachable(self, subject: Subject, project_id: int, entry: Json) -> Finding:
        """Why Label Studio is not connected, as far as it can be told from outside."""
        url, said = str(entry.get("url")), plain(str(entry.get("error_message") or ""))
        try:
            self.client.try_ml_backend_url(project_id, url)
        except LabelStudioError as error:
            why = explained(error, url)
            return _blocked(subject, "Label Studio may not call the backend", why)
        if "401" in said or "authentication" in said.lower():
            return subject.problem(
                "password",
                "the backend refuses the user and password that Label Studio sends",
                self._connect(project_id),
            )
        if entry.get("state") == "ER":
            return subject.problem(
                "connection",
                f"Label Studio reaches {shown(url)}, but is not answered well: {said or 'no reason given'}",
                "see the findings about the server; its log has a line for each /setup",
            )
        return subject.problem(
            "connection",
            f"Label Studio cannot reach {shown(url)}, or is refused there{f': {said}' if said else ''}",
            f"try `curl {shown(url)}/health` on Label Studio's machine or in its container, where 127.0.0.1 is the "
            f"container itself; then {self._connect(project_id)} with the address that answers",
        )

    # Versions -----------------------------------------------------------------------------------------------
    def _versions(self, subject: Subject, project_id: int, project: Json, entry: Json) -> Iterator[Finding]:
        known, title = str(entry.get("model_version") or ""), str(entry.get("title") or "")
        shown_version = str(project.get("model_version") or "")
        if entry.get("state") != CONNECTED or not known:
            yield subject.skipped("version names", "not before Label Studio is connected")
            return
        healthy = True
        served = self._served(project_id)
        if served and known not in served:
            healthy = False
            yield subject.problem(
                "version names",
                f"Label Studio is told version {known}, this server serves {', '.join(served)}: another server answers "
                "Label Studio, or one with other settings",
                f"look who listens at {shown(entry.get('url'))}; all servers need one VLM_CHECKPOINT and VLM_DATA_DIR",
            )
        # With predictions hidden from annotators Label Studio forgets which they take; that is said already.
        if shown_version not in (title, known) and project.get("show_collab_predictions"):
            healthy = False
            yield subject.problem(
                "version names",
                f'the project takes predictions of "{shown_version}", the connection is titled "{title}": annotators '
                "get no live predictions",
                self._connect(project_id),
            )
        elif title == FIRST_TITLE and not self.settings.show_scores:
            yield subject.note("version names", "scores do not show, as VLM_SHOW_SCORES says")
        elif title != known and is_version(title):
            healthy = False
            yield subject.problem(
                "version names",
                f'the connection is titled "{title}", version {known} serves: scores of new predictions do not show',
                self._connect(project_id),
            )
        elif title != known:
            yield subject.note("version names", f'scores do not show with a title of its own ("{title}")')
        foreign = self._foreign(project_id, known)
        if foreign:
            healthy = False
            yield subject.problem(
                "version names",
                f"the newest predictions are named {foreign}, but Label Studio is told {known}: it asks again for ever",
                "let one server with one VLM_CHECKPOINT answer, then retrieve predictions again",
            )
        if healthy:
            yield subject.ok("version names", f"{known}, in Label Studio and here")

    def _served(self, project_id: int) -> list[str]:
        """The version's name as this server says it; nothing where it does not answer."""
        try:
            answer = self.http.get(
                f"{self.server_url}/versions", params={"project": project_id}, auth=self.settings.basic_auth
            )
            return [str(name) for name in answer.json()["versions"]]
        except (httpx.HTTPError, ValueError, KeyError, TypeError):
            return []

    def _foreign(self, project_id: int, known: str) -> str | None:
        """The name of the newest prediction, where it can never be the one that Label Studio is told.

        An older number or another hash is right: they were made before. Another base model or project is not.
        """
        ours = read_version_name(known)
        predictions = [
            prediction
            for task in itertools.islice(self.client.tasks(project_id, page_size=_LOOKED_AT), _LOOKED_AT)
            for prediction in task.get("predictions") or []
            if read_version_name(str(prediction.get("model_version") or "")) is not None
        ]
        if ours is None or not predictions:
            return None
        newest = max(predictions, key=lambda prediction: str(prediction.get("created_at") or ""))
        name = read_version_name(str(newest["model_version"]))
        same = name is None or (name.base, name.project_id) == (ours.base, ours.project_id)
        return None if same else str(newest["model_version"])

    # The webhook --------------------------------------------------------------------------------------------
    def _webhooks(
        self, subject: Subject, project_id: int, hooks: Sequence[Json], entries: Sequence[Json], *, connected: bool
    ) -> Iterator[Finding]:
        found, secret = sort_webhooks(hooks, self.backend_url), self.settings.webhook_secret
        healthy = True
        try:
            self.client.try_webhook_url(project_id, webhook_url(self.backend_url))
        except LabelStudioError as error:
            healthy = False
            yield _blocked(subject, "Label Studio sends no webhook to the backend", explained(error, self.backend_url))
        if found.ours is None:
            healthy = False
            # A project that is not connected at all needs no second word about it.
            if connected:
                yield subject.problem(
                    "webhook",
                    f"there is none to {webhook_url(self.backend_url)}: annotations start no training",
                    self._connect(project_id),
                )
        else:
            wanted = wanted_webhook(
                self.backend_url, secret.get_secret_value() if secret else None, found.ours.get("headers")
            )
            differs = webhook_differences(found.ours, wanted)
            if "headers" in differs:
                healthy = False
                has = "carries a secret other than" if secret_of(found.ours) else "does not carry"
                said = (
                    f"the webhook {has} VLM_WEBHOOK_SECRET" if secret else "the webhook carries a secret of former days"
                )
                yield subject.problem("webhook secret", said, self._connect(project_id))
            others = [name for name in differs if name not in ("headers", "url")]
            if others:
                healthy = False
                names = ", ".join(name.replace("_", " ") for name in others)
                yield subject.problem("webhook", f"its settings differ: {names}", self._connect(project_id))
        for hook in (*found.left_over, *_orphans(hooks, found.left_over, entries, self.backend_url)):
            healthy = False
            yield subject.problem(
                "ghost webhook",
                f"a webhook to {shown(hook.get('url'))} is left over from a former connection: Label Studio goes on "
                "calling it, inside each submit",
                f"remove it under Settings > Webhooks, or {self._connect(project_id)} where it is of this backend",
            )
        if healthy:
            yield subject.ok("webhook", f"annotations are told to {webhook_url(self.backend_url)}")


def _orphans(hooks: Sequence[Json], known: Sequence[Json], entries: Sequence[Json], backend_url: str) -> list[Json]:
    """Webhooks as Label Studio makes them with a connection, for all events, whose connection is no more."""
    alive = [webhook_url(str(entry.get("url"))) for entry in entries] + [webhook_url(backend_url)]
    return [
        hook
        for hook in hooks
        if hook not in known
        and hook.get("send_for_all_actions")
        and str(hook.get("url")).rstrip("/").endswith("/webhook")
        and not any(same_url(hook.get("url"), url) for url in alive)
    ]


def _blocked(subject: Subject, what: str, error: LabelStudioError) -> Finding:
    """Label Studio does not take the address: blocked, or a host that it cannot find."""
    said = str(error)
    if "ML_BLOCK_LOCAL_IP" in said:
        return subject.problem(
            "private address",
            f"{what}: it blocks private addresses",
            "start Label Studio with ML_BLOCK_LOCAL_IP=false and SSRF_PROTECTION_ENABLED=false; both are needed",
        )
    return subject.problem(
        "address", f"{what}: {said}", "write an address that Label Studio's machine can find (VLM_BACKEND_URL)"
    )
