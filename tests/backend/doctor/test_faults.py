"""Planted faults: each is found, named with its remedy, and nothing else is said; a healthy system has none."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis
from rq import SimpleWorker
from rq.serializers import JSONSerializer
from typer.testing import CliRunner

from backend.cli import app
from backend.doctor import command, machine
from backend.doctor.command import examine_all, print_report
from backend.doctor.findings import Finding, Report
from backend.label_studio.client import LabelStudioClient
from backend.label_studio.connect import connect_project
from backend.label_studio.connection import FIRST_TITLE, SECRET_HEADER
from backend.queue import QUEUE_NAME
from backend.settings import Settings
from tests.backend.label_studio.fake import FakeLabelStudio, jwt
from tests.private_redis import private_redis

URL = "http://127.0.0.1:9090"
V1 = "demo-p1-v001-bbbbbbbb"
SECRET = "a webhook secret"
CONFIG = """<View><Image name="image" value="$image"/>
<BrushLabels name="brush" toName="image"><Label value="cat"/></BrushLabels></View>"""


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, redis.Redis]]:
    data_dir = tmp_path_factory.mktemp("doctor")
    with private_redis(data_dir) as connected:
        yield data_dir, connected


@dataclass
class Server:
    """The running server, as far as the doctor asks it."""

    model: str = "ready"
    served: list[str] = field(default_factory=lambda: [V1])
    secret: str | None = SECRET
    auth: tuple[str, str] | None = None
    release: str = importlib.metadata.version("label-studio-vlm-backend")
    down: bool = False

    def answer(self, request: httpx.Request) -> httpx.Response:
        if self.down:
            raise httpx.ConnectError("refused")
        path = request.url.path
        if path == "/health":
            return httpx.Response(200, json={"status": "UP", "model": self.model})
        if path == "/webhook":
            return httpx.Response(200 if request.headers.get(SECRET_HEADER) == self.secret else 401, json={})
        if self.auth and request.headers.get("authorization") != httpx.BasicAuth(*self.auth)._auth_header:
            return httpx.Response(401, json={})
        if path == "/versions":
            return httpx.Response(200, json={"versions": self.served})
        return httpx.Response(200, json={"version": self.release, "model": {"reason": "no such directory"}})


@dataclass
class System:
    """All of it, healthy until a test plants a fault."""

    studio: FakeLabelStudio
    server: Server
    settings: Settings
    redis: redis.Redis
    projects: tuple[int, ...] = (1,)

    @property
    def client(self) -> LabelStudioClient:
        return LabelStudioClient("http://ls.test", self.studio.LEGACY, transport=self.studio.transport)

    def connect(self, url: str = URL) -> None:
        secret = self.settings.webhook_secret
        assert secret is not None
        connect_project(
            self.client, 1, url, webhook_secret=secret.get_secret_value(), basic_auth=self.settings.basic_auth
        )

    def set(self, **changes: Any) -> None:
        self.settings = Settings(**(self.settings.model_dump() | changes))

    def findings(self) -> list[Finding]:
        return list(
            examine_all(
                self.settings,
                self.projects,
                studio_transport=self.studio.transport,
                server_transport=httpx.MockTransport(self.server.answer),
            )
        )


@pytest.fixture
def system(shared: tuple[Path, redis.Redis]) -> System:
    (data_dir, connection), label_studio = shared, FakeLabelStudio()
    connection.flushall()
    SimpleWorker([QUEUE_NAME], connection=connection, serializer=JSONSerializer).register_birth()
    settings = Settings(
        checkpoint="demo",
        device="cpu",
        data_dir=data_dir,
        label_studio_url="http://ls.test",
        label_studio_api_key=label_studio.LEGACY,  # type: ignore[arg-type]  # pydantic makes a secret of it
        webhook_secret=SECRET,  # type: ignore[arg-type]
    )
    label_studio.projects[1]["label_config"] = CONFIG
    label_studio.reachable[URL] = (V1, None)
    label_studio.tasks = [prediction(1, V1, "2026-11-25T11:00:00Z")]
    made = System(label_studio, Server(), settings, connection)
    made.connect()
    label_studio.calls.clear()
    return made


def prediction(task_id: int, version: str, created_at: str) -> dict[str, Any]:
    return {"id": task_id, "predictions": [{"model_version": version, "created_at": created_at, "result": []}]}


def test_a_healthy_system_has_no_finding_and_nothing_is_changed(system: System) -> None:
    findings = system.findings()
    assert [finding for finding in findings if finding.state not in ("ok", "note")] == []
    assert Report(tuple(findings)).healthy
    checked = {finding.check for finding in findings}
    assert checked == {
        "settings", "data directory", "versions", "checkpoint", "device", "redis", "worker", "server", "password",
        "secret", "address", "clock", "token", "labelling config", "connection", "version names", "webhook",
    }  # fmt: skip
    # The two trials of addresses create nothing.
    assert set(system.studio.changes) <= {("POST", "/api/ml/"), ("POST", "/api/webhooks/")}
    assert (len(system.studio.backends), len(system.studio.hooks)) == (1, 1)


def test_scores_that_are_not_to_show_are_no_fault(system: System) -> None:
    system.set(show_scores=False)
    connect_project(
        system.client, 1, URL, title=FIRST_TITLE, webhook_secret=SECRET, basic_auth=system.settings.basic_auth
    )
    findings = system.findings()
    assert Report(tuple(findings)).healthy
    (told,) = [finding for finding in findings if finding.check == "version names" and finding.state == "note"]
    assert "VLM_SHOW_SCORES" in told.said


# Faults: each changes the system; then the check that finds it, a part of what is said, and of the remedy. ----------
def no_label_studio(system: System) -> None:
    def refuse(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused", request=request)

    system.studio.before.append(refuse)


def something_else_answers(system: System) -> None:
    system.studio.before.append(lambda request: httpx.Response(200, text="<html>hello</html>"))


def legacy_token_disabled(system: System) -> None:
    system.set(label_studio_api_key="f" * 40)


def personal_token_revoked(system: System) -> None:
    system.set(label_studio_api_key=jwt("refresh", 2, 1e9))


def clock_ahead(system: System) -> None:
    system.studio.clock_ahead = timedelta(minutes=-7)


def no_project(system: System) -> None:
    system.projects = (9,)


def not_connected(system: System) -> None:
    system.studio.backends.clear()
    system.studio.hooks.clear()


def another_backend_first(system: System) -> None:
    other = {**system.studio.backends[0], "id": 90, "url": "http://other.test:9090", "title": "sam", "description": ""}
    system.studio.reachable["http://other.test:9090"] = ("sam", None)
    system.studio.backends.insert(0, other)


def other_address(system: System) -> None:
    system.set(backend_url="http://backend.new:9090")
    hook = system.studio.hooks[0]
    system.studio.reachable["http://backend.new:9090"] = (V1, None)
    hook["url"] = "http://backend.new:9090/webhook"


def private_addresses_blocked(system: System) -> None:
    system.studio.blocks_connections = True
    del system.studio.reachable[URL]


def only_webhooks_blocked(system: System) -> None:
    system.studio.blocks_webhooks = True
    system.studio.hooks.clear()


def backend_unreachable(system: System) -> None:
    del system.studio.reachable[URL]


def wrong_password(system: System) -> None:
    system.studio.reachable[URL] = (V1, ("owner", "new"))


def setup_fails(system: System) -> None:
    system.studio.reachable[URL] = ("!503 the model is loading", None)


def no_webhook(system: System) -> None:
    system.studio.hooks.clear()


def webhook_without_secret(system: System) -> None:
    system.studio.hooks[0]["headers"] = {}


def webhook_with_old_secret(system: System) -> None:
    system.studio.hooks[0]["headers"] = {SECRET_HEADER: "of last year"}


def webhook_off(system: System) -> None:
    system.studio.hooks[0]["is_active"] = False


def ghost_of_a_deleted_backend(system: System) -> None:
    system.studio._new_hook({"url": "http://gone.test:9090/webhook", "project": 1})


def ghost_of_an_old_address(system: System) -> None:
    hook = {"url": "http://old.test:9090/webhook", "project": 1, "headers": {SECRET_HEADER: SECRET}}
    system.studio._new_hook({**hook, "send_for_all_actions": False})


def stale_title(system: System) -> None:
    system.studio.reachable[URL] = ("demo-p1-v002-cccccccc", None)
    system.server.served = ["demo-p1-v002-cccccccc"]


def project_of_another_version(system: System) -> None:
    system.studio.projects[1]["model_version"] = "something old"


def two_servers(system: System) -> None:
    system.server.served = ["clipseg-p1-v000-dddddddd"]


def predictions_of_another_server(system: System) -> None:
    system.studio.tasks.append(prediction(2, "clipseg-p1-v000-dddddddd", "2026-11-25T12:00:00Z"))


def unusable_config(system: System) -> None:
    system.studio.projects[1]["label_config"] = "<View><Image name='image'"


def nothing_to_predict(system: System) -> None:
    system.studio.projects[1]["label_config"] = '<View><Text name="t" value="$t"/></View>'


def predictions_hidden(system: System) -> None:
    system.studio.projects[1]["show_collab_predictions"] = False


def server_down(system: System) -> None:
    system.server.down = True


def model_failed(system: System) -> None:
    system.server.model = "failed"


def old_release_runs(system: System) -> None:
    system.server.release = "0.0.1"


def server_with_another_secret(system: System) -> None:
    system.server.secret = "another secret"


def server_with_a_password(system: System) -> None:
    system.server.auth = ("u", "p")


def no_worker(system: System) -> None:
    system.redis.flushall()


def no_redis(system: System) -> None:
    system.set(redis_url="redis://:hush@127.0.0.1:1/0")


def checkpoint_missing(system: System) -> None:
    system.set(checkpoint="nobody/nothing")


def checkpoint_incomplete(system: System) -> None:
    directory = system.settings.data_dir / "half"
    directory.mkdir(exist_ok=True)
    config = {"model_type": "clipseg", "text_config": {}, "vision_config": {}}
    (directory / "config.json").write_text(json.dumps(config))
    system.set(checkpoint=str(directory))


def no_gpu(system: System) -> None:
    system.set(device="cuda:7")


def no_settings(system: System) -> None:
    system.set(label_studio_api_key=None)


def webhooks_cannot_come(system: System) -> None:
    system.server.auth = ("u", "p")
    system.studio.reachable[URL] = (V1, ("u", "p"))
    system.set(basic_auth_user="u", basic_auth_pass="p")
    system.connect()
    system.set(webhook_secret=None)
    system.studio.hooks[0]["headers"] = {}
    system.server.secret = "unknown"


FAULTS: list[tuple[Callable[[System], None], str, str, str]] = [
    (no_label_studio, "address", "cannot be reached", "LABEL_STUDIO_URL"),
    (something_else_answers, "address", "something other than JSON", "LABEL_STUDIO_URL"),
    (legacy_token_disabled, "token", "Legacy tokens are off by default", "personal access token"),
    (personal_token_revoked, "token", "personal access token is refused", "create a personal access token"),
    (clock_ahead, "clock", "differ by 4", "NTP"),
    (no_project, "project", "knows nothing", "check its number"),
    (not_connected, "connection", "not connected to this backend", "vlm connect --project 1"),
    (another_backend_first, "connection", "uses only the first backend", "Settings > Model"),
    (other_address, "address", f"connected to {URL}", "vlm connect --project 1 --backend-url http://backend.new"),
    (private_addresses_blocked, "private address", "may not call the backend", "ML_BLOCK_LOCAL_IP=false"),
    (only_webhooks_blocked, "private address", "sends no webhook", "SSRF_PROTECTION_ENABLED=false"),
    (backend_unreachable, "connection", "cannot reach", f"curl {URL}/health"),
    (wrong_password, "password", "refuses the user and password", "vlm connect"),
    (setup_fails, "connection", "503 the model is loading", "log"),
    (no_webhook, "webhook", f"there is none to {URL}/webhook", "vlm connect --project 1"),
    (webhook_without_secret, "webhook secret", "does not carry", "vlm connect"),
    (webhook_with_old_secret, "webhook secret", "other than VLM_WEBHOOK_SECRET", "vlm connect"),
    (webhook_off, "webhook", "is active", "vlm connect"),
    (ghost_of_a_deleted_backend, "ghost webhook", "http://gone.test:9090/webhook", "Settings > Webhooks"),
    (ghost_of_an_old_address, "ghost webhook", "http://old.test:9090/webhook", "vlm connect"),
    (stale_title, "version names", "scores of new predictions do not show", "vlm connect"),
    (project_of_another_version, "version names", "no live predictions", "vlm connect"),
    (two_servers, "version names", "another server", "who listens"),
    (predictions_of_another_server, "version names", "asks again for ever", "one server"),
    (unusable_config, "labelling config", "", "Labeling Interface"),
    (nothing_to_predict, "labelling config", "nothing that can be predicted", "check-config"),
    (predictions_hidden, "predictions shown", "do not see predictions", "vlm connect"),
    (server_down, "server", f"nothing answers at {URL}", "vlm serve"),
    (model_failed, "server", "no such directory", "checkpoint"),
    (old_release_runs, "release", "0.0.1 is running", "start the server anew"),
    (server_with_another_secret, "secret", "refuses VLM_WEBHOOK_SECRET", "the server's settings"),
    (server_with_a_password, "password", "refuses BASIC_AUTH_USER", "the server's settings"),
    (no_worker, "worker", "no worker is signed on", "vlm worker"),
    (no_redis, "redis", "redis://***@127.0.0.1:1", "REDIS_URL"),
    (checkpoint_missing, "checkpoint", "nobody/nothing", "vlm models pull nobody/nothing"),
    (checkpoint_incomplete, "checkpoint", "half", "complete"),
    (no_gpu, "device", "not on this machine", "VLM_DEVICE=auto"),
    (no_settings, "settings", "LABEL_STUDIO_API_KEY not set", "Personal Access Token"),
    (webhooks_cannot_come, "settings", "which webhooks cannot carry", "VLM_WEBHOOK_SECRET"),
]

ALONG: dict[str, set[str]] = {
    # What cannot but be wrong with it.
    "only_webhooks_blocked": {"webhook"},
}


@pytest.mark.parametrize(("plant", "check", "said", "remedy"), FAULTS, ids=[fault[0].__name__ for fault in FAULTS])
def test_a_planted_fault_is_found_and_named(
    system: System, plant: Callable[[System], None], check: str, said: str, remedy: str
) -> None:
    plant(system)
    report = Report(tuple(system.findings()))
    assert not report.healthy
    found = [finding for finding in report.problems if finding.check == check]
    assert len(found) == 1, report.problems
    assert said in found[0].said
    assert remedy in found[0].remedy
    others = {finding.check for finding in report.problems} - {check}
    assert others == ALONG.get(plant.__name__, set())
    told = json.dumps(report.to_json())
    assert not any(word in told for word in (SECRET, "another secret", "of last year", "hush", system.studio.LEGACY))


# Of this machine ----------------------------------------------------------------------------------------------


def problems(findings: Any) -> list[tuple[str, str]]:
    return [(finding.check, finding.said) for finding in findings if finding.state == "problem"]


def test_a_full_disk(tmp_path: Path) -> None:
    class Usage:
        free = 5_000_000

    ((check, said),) = problems(machine.check_data_dir(tmp_path, lambda path: Usage()))
    assert check == "disk space"
    assert "0.0 GB are free" in said


def test_a_data_directory_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no directory")
    ((check, said),) = problems(machine.check_data_dir(tmp_path / "file" / "data"))
    assert check == "data directory"
    assert "cannot be written" in said
    assert problems(machine.check_data_dir(tmp_path / "not" / "yet")) == []  # the server will make it


def test_a_damaged_version(tmp_path: Path) -> None:
    version = tmp_path / "projects" / "7" / "versions" / "001"
    version.mkdir(parents=True)
    ((check, said),) = problems(machine.check_versions(tmp_path))
    assert check == "versions"
    assert "manifest.json" in said


def test_a_driver_without_a_gpu_in_pytorch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    driver = tmp_path / "version"
    settings = Settings(checkpoint="demo", device="auto", data_dir=tmp_path)
    assert problems(machine.check_device(settings, driver)) == []
    driver.write_text("NVRM")
    ((check, said),) = problems(machine.check_device(settings, driver))
    assert check == "device"
    assert "sees none" in said


class Forgetful:
    """A Redis with other settings than ours."""

    def __init__(self, save: str, **info: Any) -> None:
        self._save, self._info = save, info

    def info(self) -> dict[str, Any]:
        return {"redis_version": "7.2.4", "aof_enabled": 1, **self._info}

    def config_get(self, name: str) -> dict[str, str]:
        if self._save == "forbidden":
            raise redis.ResponseError("unknown command 'CONFIG'")
        return {"save": self._save}


@pytest.mark.parametrize(
    ("save", "info", "said"),
    [
        ("", {"aof_enabled": 0}, "keeps nothing on disk"),
        ("3600 1", {"aof_enabled": 0}, None),
        ("forbidden", {"aof_enabled": 0}, None),
        ("", {}, None),
        ("", {"aof_last_write_status": "err"}, "last write to disk failed"),
        ("", {"maxmemory": 100, "maxmemory_policy": "allkeys-lru"}, "drops what does not fit"),
        ("", {"maxmemory": 100, "maxmemory_policy": "noeviction"}, None),
        ("", {"redis_version": "5.0.14"}, "too old"),
    ],
)
def test_a_redis_that_loses_jobs(save: str, info: dict[str, Any], said: str | None) -> None:
    forgetful: Any = Forgetful(save, **info)
    keeps = machine._keeps_snapshots(forgetful)
    found = [
        finding for finding in machine._redis_findings(forgetful.info(), keeps, True) if finding.state == "problem"
    ]
    assert [said in finding.said for finding in found if said] == ([True] if said else [])
    assert bool(found) == bool(said)


# The command --------------------------------------------------------------------------------------------------


def test_projects_are_found_by_their_connection(system: System) -> None:
    system.studio.projects[2] = {"id": 2, "title": "not ours", "label_config": CONFIG}
    system.projects = ()
    assert {f.where for f in system.findings() if f.where.startswith("project")} == {"project 1"}
    not_connected(system)
    (found,) = [finding for finding in system.findings() if finding.state == "problem"]
    assert found.said == "no project is connected to this backend"


def test_a_check_that_fails_itself_is_a_finding_and_the_others_go_on(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(settings: Settings) -> Iterator[Finding]:
        raise ZeroDivisionError("by zero")

    monkeypatch.setattr(command.machine, "check_device", broken)
    found = system.findings()
    assert [finding.said for finding in found if finding.state == "problem"] == [
        "the check itself failed: ZeroDivisionError: by zero"
    ]
    assert "webhook" in {finding.check for finding in found}


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str, **environment: str) -> Any:
    for name in ("VLM_DATA_DIR", "LABEL_STUDIO_URL", "LABEL_STUDIO_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    return CliRunner().invoke(app, ["doctor", *arguments], env=environment)


def test_the_command_s_exit_code_says_whether_all_is_well(monkeypatch: pytest.MonkeyPatch) -> None:
    finding = Finding("redis", "this machine", "ok", "it answers")
    asked: list[Any] = []

    def made(settings: Settings, project_ids: Any, **options: Any) -> list[Finding]:
        asked.append((list(project_ids), options))
        return [finding]

    monkeypatch.setattr(command, "examine_all", made)
    done = run(monkeypatch, "--project", "7", "--project", "8", "--json", "--backend-url", URL)
    assert done.exit_code == 0
    assert json.loads(done.stdout) == {"healthy": True, "findings": [vars(finding)]}
    assert asked == [([7, 8], {"backend_url": URL})]
    finding = replace(finding, state="not checked")
    done = run(monkeypatch)
    assert done.exit_code == 1
    assert "not all could be checked" in done.stdout


def test_settings_that_cannot_be_read_are_findings_each(monkeypatch: pytest.MonkeyPatch) -> None:
    done = run(monkeypatch, "--json", LABEL_STUDIO_URL="localhost", VLM_DEVICE="gpu")
    assert done.exit_code == 1
    found = json.loads(done.stdout)["findings"]
    assert [(item["check"], item["state"]) for item in found] == [("settings", "problem")] * 2
    assert "LABEL_STUDIO_URL" in done.stdout
    assert "VLM_DEVICE" in done.stdout


def test_the_report_for_people_has_each_finding_and_its_remedy(capsys: pytest.CaptureFixture[str]) -> None:
    finding = Finding("webhook [x]", "project 7", "problem", "there is none", "vlm connect")
    print_report(Report((finding, replace(finding, state="ok", remedy=""))))
    said = capsys.readouterr().out
    assert "project 7" in said
    assert "WRONG  webhook [x]: there is none" in said
    assert "-> vlm connect" in said
    assert said.rstrip().endswith("1 thing is wrong.")
