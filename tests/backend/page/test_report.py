"""The report on a version: what it says, who gets it, and the file that `vlm report` writes."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest
from typer.testing import CliRunner

from backend.cli import app
from backend.page.report import render_report
from backend.page.report_view import report_view
from backend.version_report import ReportRecord, read_report
from backend.versions import VersionCorruptError, VersionNotFoundError, VersionStore
from tests.backend.page.test_served import HTML
from tests.backend.page.views import HOSTILE
from tests.backend.reported import case, full_record, webp, write_version
from tests.backend.serving import Server, serving

ADDRESS = "/projects/7/versions/1/report"


def page(data_dir: Path, number: int = 1) -> str:
    return render_report(report_view(VersionStore(data_dir), 7, number))


def test_it_says_what_the_gate_said_and_shows_each_label(tmp_path: Path) -> None:
    write_version(tmp_path, record=full_record())
    found = page(tmp_path)
    assert "It is better than the base model, which served." in found
    assert "Mean IoU +0.300 over 12 images." in found
    assert "+0.210 or more, at 90 % confidence" in found
    assert "Held-out images decided" in found
    for figure in ("0.30", "0.60", "+0.30", "0.20 to 0.40", "0.50 to 0.70", "+0.25 to +0.35"):
        assert f">{figure}<" in found, figure
    assert "25\N{NO-BREAK SPACE}%" in found  # absent, marked
    assert "1 annotations that could not be read: left out" in found
    assert "skipped" not in found  # none was
    assert "IoU 0.10 → 0.90" in found
    assert "is not there; marked now" in found
    assert found.count(base64.b64encode(webp()).decode()) == 2
    assert found.count('class="loss"') == 3
    assert found.count("<h3>Loss, ") == 2  # parts of one thing share a plot
    assert ">serves<" not in found


def test_a_candidate_and_one_that_folds_have_judged_say_so(tmp_path: Path) -> None:
    write_version(tmp_path, record=full_record())
    write_version(tmp_path, record=full_record(), better=False, compared_with=1, decided_by="cross-validation, 4 folds")
    found = page(tmp_path, 2)
    assert "It is not better than version 1, which went on serving." in found
    assert "Too few images were held out, so cross-validation decided" in found
    assert "Held-out images decided" not in found


def test_it_says_what_serves_and_what_is_pinned(tmp_path: Path) -> None:
    write_version(tmp_path, record=full_record())
    store = VersionStore(tmp_path)
    store.publish(7, 1, store.next_token(7))
    assert ">serves<" in page(tmp_path)
    store.publish(7, 1, store.next_token(7), by_hand=True, pinned=True)
    assert ">serves, pinned<" in page(tmp_path)


def test_it_needs_nothing_from_elsewhere_and_runs_nothing(tmp_path: Path) -> None:
    write_version(tmp_path, label=HOSTILE, record=full_record(HOSTILE))
    found = page(tmp_path)
    assert "<script" not in found
    assert "http" not in found.replace("http-equiv", "")
    assert 'src="data:image/webp;base64,' in found


def test_a_version_without_pictures_says_so(tmp_path: Path) -> None:
    write_version(tmp_path)
    found = page(tmp_path)
    assert "None were kept: this version was made by a release that noted only its figures." in found
    assert ">0.60<" in found
    assert "<img" not in found


def test_a_picture_that_is_gone_or_is_none_costs_only_itself(tmp_path: Path) -> None:
    version = write_version(tmp_path, record=full_record())
    (version.path / "report" / "gain-1.webp").unlink()
    (version.path / "report" / "loss-1.webp").write_bytes(b"<script>alert(1)</script>")
    found = page(tmp_path)
    assert found.count("The image could not be fetched when this was written.") == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "not JSON"),
        (b'{"schema_version": 2}', "schema version 2, this release reads 1"),
        (b'{"schema_version": 1, "cases": [{}]}', "cases.0"),
        (b'{"schema_version": 1, "losses": 3}', "losses"),
    ],
)
def test_damage_is_an_error_that_names_the_file(tmp_path: Path, content: bytes, message: str) -> None:
    version = write_version(tmp_path, record=full_record())
    (version.path / "report" / "record.json").write_bytes(content)
    with pytest.raises(VersionCorruptError, match=message) as caught:
        read_report(version)
    assert "record.json" in str(caught.value)


@pytest.mark.parametrize("name", ["../manifest.json", "/etc/passwd", "x.html", "sub/x.webp"])
def test_a_case_cannot_name_a_file_elsewhere(tmp_path: Path, name: str) -> None:
    record = full_record().model_dump()
    record["cases"][0]["picture"] = name
    with pytest.raises(ValueError, match="picture"):
        ReportRecord.model_validate(record)


def test_metrics_of_any_form_are_shown_as_far_as_they_go(tmp_path: Path) -> None:
    version = write_version(tmp_path, record=full_record())
    for content in (b"{}", b'{"verdict": 3}', b'{"verdict": {"labels": {"a": 1, "b": {"iou": {"old": "x"}}}}}'):
        (version.path / "metrics.json").write_bytes(content)
        assert "It is better than" in page(tmp_path)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]  # an iterator of a Server
    with serving(tmp_path, monkeypatch) as made:
        yield made.ready()


def test_the_server_gives_it_with_what_keeps_it_to_itself(server: Server, tmp_path: Path) -> None:
    write_version(tmp_path, record=full_record())
    answer = server.client.get(ADDRESS)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.text == page(tmp_path)
    assert answer.headers["cache-control"] == "no-store"
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert f'href="{ADDRESS}"' in server.client.get("/", headers=HTML).text


@pytest.mark.parametrize(
    ("address", "status"),
    [
        ("/projects/7/versions/2/report", 404),
        ("/projects/8/versions/1/report", 404),
        ("/projects/7/versions/0/report", 422),
        ("/projects/7/versions/..%2f1/report", 404),
        ("/projects/7/versions/x/report", 422),
        ("/projects/x/versions/1/report", 422),
    ],
)
def test_what_is_not_there_is_said_plainly(server: Server, tmp_path: Path, address: str, status: int) -> None:
    write_version(tmp_path)
    answer = server.client.get(address)
    assert answer.status_code == status
    assert str(tmp_path) not in answer.text


def test_damage_is_no_traceback_and_no_path(server: Server, tmp_path: Path) -> None:
    version = write_version(tmp_path, record=full_record())
    (version.path / "report" / "record.json").write_bytes(b"{")
    answer = server.client.get(ADDRESS)
    assert answer.status_code == 503
    assert "damaged" in answer.json()["error"]
    assert str(tmp_path) not in answer.text


def test_it_wants_the_credentials_that_the_page_wants(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_version(tmp_path, record=full_record())
    with serving(tmp_path, monkeypatch, basic_auth_user="u", basic_auth_pass="p") as server:
        refused = server.ready().client.get(ADDRESS)
        assert refused.status_code == 401
        assert "crane" not in refused.text
        right = "Basic " + base64.b64encode(b"u:p").decode()
        assert server.client.get(ADDRESS, headers={"Authorization": right}).status_code == 200


def run(tmp_path: Path, *arguments: str) -> tuple[int, str]:
    environment = {"VLM_DATA_DIR": str(tmp_path / "data"), "COLUMNS": "200", "REDIS_URL": ""}
    result = CliRunner().invoke(app, ["report", *arguments], env=environment)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


def test_the_command_writes_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    data_dir = tmp_path / "data"
    write_version(data_dir, record=full_record())
    write_version(data_dir, record=full_record(cases=(case(label="boat"),)), better=False)
    assert run(tmp_path, "7", "1") == (0, "report-p7-v001.html\n")
    assert (tmp_path / "report-p7-v001.html").read_text(encoding="utf-8") == page(data_dir)
    assert run(tmp_path, "7") == (0, "report-p7-v002.html\n")  # the newest
    assert run(tmp_path, "colours-p7-v001-0a1b2c3d", "--out", str(tmp_path / "x.html"))[0] == 0
    assert (tmp_path / "x.html").read_text(encoding="utf-8") == page(data_dir)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("seven",), "neither a project's id, like 7, nor a version's name"),
        (("colours-p7-v000-0a1b2c3d",), "the base model, which no training has made"),
        (("colours-p7-v001-0a1b2c3d", "1"), "names its version already"),
    ],
)
def test_wrong_usage_is_named(tmp_path: Path, arguments: tuple[str, ...], said: str) -> None:
    code, output = run(tmp_path, *arguments)
    assert code == 2
    assert said in " ".join(output.replace("│", " ").split())


def test_what_is_missing_is_an_error_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(VersionNotFoundError, match="project 9 has no version yet: the base model serves"):
        run(tmp_path, "9")
    with pytest.raises(VersionNotFoundError, match="`vlm versions` lists them"):
        run(tmp_path, "9", "4")
