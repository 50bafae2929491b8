"""`vlm predict`'s files: what is written is what the model said."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from typer.testing import CliRunner

import vlm_core
from backend.cli import app
from backend.terminal import print_predictions
from tests.core.factories import make_clip_directory, make_clipseg_directory
from vlm_core import errors, masks
from vlm_core.demo.scenes import generate_scene
from vlm_core.edges import refine_to_edges
from vlm_core.model import Model
from vlm_core.overlay import PALETTE, draw_overlay
from vlm_core.pictures import open_picture
from vlm_core.predict_files import make_prompts, predict_files, read_exemplar, split_alternatives
from vlm_core.prompts import Prompt


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    directory = tmp_path_factory.mktemp("model") / "tiny"
    make_clipseg_directory(directory, mask_size=64, image_size=32)
    return vlm_core.load(directory, device="cpu")


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """80 x 50 px in the file, displayed as 50 x 80: EXIF orientation 6."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (50, 80, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "photo.png", exif=exif)
    return tmp_path / "photo.png"


def test_masks_on_disk_are_the_models_masks_as_displayed(model: Model, photo: Path, tmp_path: Path) -> None:
    (result,) = predict_files(model, [photo], prompts=["left | right", "dog"], tags=["a", "b"], out=tmp_path / "out")
    assert (result.width, result.height) == (50, 80)
    upright = ImageOps.exif_transpose(Image.open(photo)).convert("RGB")
    probability = model.segment(upright, ["left", "right", "dog"]).probabilities()
    expected = [probability[:2].amax(0), probability[2]]
    for found, truth in zip(result.prompts, expected, strict=True):
        mask = np.asarray(Image.open(tmp_path / "out" / found.mask))
        assert np.array_equal(mask == 255, masks.binarise(truth, 0.5))
        assert set(np.unique(mask)) <= {0, 255}
        assert found.area == pytest.approx(float((truth >= 0.5).float().mean()))
    assert sum(t.probability for t in result.tags) == pytest.approx(1)
    document = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert document["images"][0]["prompts"][0]["mask"] == result.prompts[0].mask
    assert document["model"]["fingerprint"] == model.fingerprint


def test_one_broken_file_costs_only_itself(model: Model, photo: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no image")
    seen = []
    results = predict_files(
        model,
        [tmp_path / "broken.png", photo, photo, tmp_path / "missing.png"],
        prompts=["x"],
        tags=[],
        out=tmp_path / "out",
        on_image=seen.append,
    )
    assert [r.error is None for r in results] == [False, True, True, False]
    assert "broken.png" in str(results[0].error)
    assert results[1].overlay != results[2].overlay  # two images of one name do not overwrite each other
    assert seen == results


def exemplar_files(folder: Path) -> tuple[Path, Path]:
    rng = np.random.default_rng(5)
    Image.fromarray(rng.integers(0, 255, (40, 60, 3), dtype=np.uint8)).save(folder / "shown.png")
    mask = np.zeros((40, 60), dtype=np.uint8)
    mask[10:30, 20:50] = 255
    Image.fromarray(mask).save(folder / "shown-mask.png")
    return folder / "shown.png", folder / "shown-mask.png"


def test_prompts_of_every_kind_are_the_models_answers(model: Model, photo: Path, tmp_path: Path) -> None:
    image, mask = exemplar_files(tmp_path)
    by_mask, by_box = read_exemplar(f"{image}:{mask}"), read_exemplar(f"{image}:20,10,50,30")
    prompts = [
        *make_prompts(["left | right"], not_prompts=["dog | cat"], exemplars=[by_mask], templates=["a {}."]),
        *make_prompts(["left"], exemplars=[by_box, by_mask], text_weight=0.3),
    ]
    (result,) = predict_files(model, [photo], prompts=prompts, tags=[], out=tmp_path / "out", tile=40)
    assert [r.prompt for r in result.prompts] == ["left | right", "exemplar", "left"]
    upright = ImageOps.exif_transpose(Image.open(photo)).convert("RGB")
    same = [
        Prompt(["left", "right"], not_texts=["dog", "cat"], templates=["a {}."]),
        Prompt(not_texts=["dog", "cat"], exemplars=[by_mask], templates=["a {}."]),
        Prompt(["left"], exemplars=[by_mask, by_mask], text_weight=0.3),
    ]
    expected = model.segment(upright, same, tile=40).probabilities()
    for found, truth in zip(result.prompts, expected, strict=True):
        written = np.asarray(Image.open(tmp_path / "out" / found.mask)) == 255
        assert np.array_equal(written, masks.binarise(truth, 0.5))
    assert not np.array_equal(expected[0], expected[1])
    document = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert document["tile"] == 40
    assert document["asked"][0]["not_texts"] == ["dog", "cat"]
    assert [told["exemplars"] for told in document["asked"]] == [0, 1, 2]


def test_the_command_takes_every_kind_of_prompt(photo: Path, tmp_path: Path) -> None:
    image, mask = exemplar_files(tmp_path)
    arguments = ["predict", str(photo), "--prompt", "circle", "--not-prompt", "red circle", "--tile", "auto"]
    arguments += ["--exemplar", f"{image}:{mask}", "--template", "{}", "--checkpoint", "demo", "--device", "cpu"]
    result = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "out"), "--json"], catch_exceptions=False)
    assert result.exit_code == 0
    document = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert [p["prompt"] for p in document["images"][0]["prompts"]] == ["circle", "exemplar"]
    assert document["asked"][0]["not_texts"] == ["red circle"]
    assert document["tile"] == "auto"
    for wrong in (["--tile", "small"], ["--tile", "-3"]):
        assert CliRunner().invoke(app, [*arguments, *wrong, "--out", str(tmp_path / "out")]).exit_code == 2


def test_masks_are_pulled_to_edges_where_asked(tmp_path: Path) -> None:
    scene = generate_scene(7)
    phrase, _ = scene.phrases()[0]
    scene.image.save(tmp_path / "scene.png")
    written = {}
    for name, more in (("plain", []), ("edges", ["--edges"])):
        out = tmp_path / name
        arguments = ["predict", str(tmp_path / "scene.png"), "--prompt", phrase, "--checkpoint", "demo", *more]
        assert CliRunner().invoke(app, [*arguments, "--device", "cpu", "--out", str(out)]).exit_code == 0
        document = json.loads((out / "predictions.json").read_text())
        assert document["edges"] is bool(more)
        written[name] = np.asarray(Image.open(out / document["images"][0]["prompts"][0]["mask"])) == 255
    assert np.array_equal(written["edges"], refine_to_edges(written["plain"], scene.image.convert("RGB")))
    assert not np.array_equal(written["edges"], written["plain"])


@pytest.mark.parametrize("text", ["shown.png", ":mask.png", "shown.png:", "{image}:1,2,3", "{image}:gone.png"])
def test_exemplars_that_cannot_be_read_are_named(tmp_path: Path, text: str) -> None:
    image, _ = exemplar_files(tmp_path)
    with pytest.raises((errors.InputError, errors.DataError), match=r"png|1,2,3"):
        read_exemplar(text.format(image=image))


def test_what_has_nothing_to_work_on_is_named() -> None:
    with pytest.raises(errors.InputError, match="at least one of each"):
        make_prompts(["dog"], text_weight=0.5)
    with pytest.raises(errors.InputError, match="a prompt or an exemplar"):
        make_prompts([], not_prompts=["dog"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompts": [], "tags": []}, "nothing was asked"),
        ({"prompts": [" | "], "tags": []}, "blank"),
        ({"prompts": ["x"], "tags": [], "threshold": 1.5}, r"1\.5"),
    ],
)
def test_unusable_arguments_are_named(
    model: Model, photo: Path, tmp_path: Path, arguments: dict[str, object], message: str
) -> None:
    with pytest.raises(errors.InputError, match=message):
        predict_files(model, [photo], out=tmp_path / "out", **arguments)  # type: ignore[arg-type]  # mistakes on purpose


def test_prompts_need_a_checkpoint_with_masks(photo: Path, tmp_path: Path) -> None:
    make_clip_directory(tmp_path / "clip")
    with pytest.raises(errors.CapabilityError):
        predict_files(vlm_core.load(tmp_path / "clip"), [photo], prompts=["x"], tags=[], out=tmp_path / "out")


def test_masks_of_a_checkpoint_without_decoder_are_refused_before_any_image(tmp_path: Path) -> None:
    make_clip_directory(tmp_path / "clip")
    model = vlm_core.load(tmp_path / "clip", device="cpu")
    with pytest.raises(errors.CapabilityError, match="ask it for tags only"):
        predict_files(model, [tmp_path / "missing.png"], prompts=["x"], tags=[], out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_output_that_is_a_file_is_named(model: Model, photo: Path) -> None:
    with pytest.raises(errors.InputError, match=r"photo\.png cannot be made a directory"):
        predict_files(model, [photo], prompts=["x"], tags=[], out=photo)


@pytest.mark.parametrize("prompt", ["two\nlines", "x" * 20_000, "左の馬 [/b]", "a/b\\c: d"])
def test_any_prompt_can_be_drawn_and_saved(model: Model, photo: Path, tmp_path: Path, prompt: str) -> None:
    (result,) = predict_files(model, [photo], prompts=[prompt], tags=[prompt], out=tmp_path / "out")
    assert result.error is None
    assert result.prompts[0].prompt == prompt
    assert Image.open(tmp_path / "out" / str(result.overlay)).width < 2000


@pytest.mark.parametrize("size", [(1, 1), (3000, 1), (1, 3000), (60_000, 10)])
def test_any_shape_of_image_is_answered_at_its_size(model: Model, tmp_path: Path, size: tuple[int, int]) -> None:
    Image.new("RGB", size, "red").save(tmp_path / "strip.png")
    (result,) = predict_files(model, [tmp_path / "strip.png"], prompts=["x"], tags=["x"], out=tmp_path / "out")
    assert Image.open(tmp_path / "out" / result.prompts[0].mask).size == size
    drawn = Image.open(tmp_path / "out" / str(result.overlay))
    assert drawn.height < size[1] + 100


def test_long_file_names_leave_room_for_the_prompt(model: Model, tmp_path: Path) -> None:
    name = "é" * 120 + ".png"
    Image.new("RGB", (8, 8)).save(tmp_path / name)
    (result,) = predict_files(model, [tmp_path / name], prompts=["word " * 30], tags=[], out=tmp_path / "out")
    assert (tmp_path / "out" / result.prompts[0].mask).is_file()


def test_deep_grey_and_transparency_are_seen_as_a_browser_shows_them(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 257, 65535]], dtype=np.uint16)).save(tmp_path / "deep.png")
    Image.new("RGBA", (1, 1), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    assert np.asarray(open_picture(tmp_path / "deep.png"))[0, :, 0].tolist() == [0, 1, 255]
    assert open_picture(tmp_path / "clear.png").getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("text", ["[/b]", "[red]x[/red]", "a [link=x]"])
def test_the_table_shows_texts_as_they_are(
    model: Model, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    results = predict_files(model, [photo], prompts=[text], tags=[text], out=tmp_path / "out")
    print_predictions(results, tmp_path / "out")
    assert text in capsys.readouterr().out


def test_alternatives_are_split_and_trimmed() -> None:
    assert split_alternatives(" a | b|c ") == ["a", "b", "c"]


def test_the_overlay_tints_the_mask_and_nothing_else() -> None:
    grey = Image.new("RGB", (60, 40), (128, 128, 128))
    mask = np.zeros((40, 60), dtype=bool)
    mask[10:30, 20:50] = True
    drawn = np.asarray(draw_overlay(grey, [mask], ["a thing: 0.9"]))
    assert (drawn[:40, :60][~mask] == 128).all()
    assert (drawn[15, 30] != 128).any()
    assert tuple(drawn[10, 30]) == PALETTE[0]  # the outline
    assert drawn.shape[0] > 40  # the legend stands below the image
    assert torch.tensor(drawn[:40, :60]).shape == (40, 60, 3)
