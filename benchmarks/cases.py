"""Cases of the model itself and of the run-length codec."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from label_studio_sdk.converter import brush
from PIL import Image

import vlm_core
from backend.label_studio.brush import decode_mask, encode_mask
from benchmarks.checkpoint import PHRASES
from benchmarks.masks import ragged_mask, smooth_mask
from benchmarks.pairing import paired, ratios
from benchmarks.references import Floor, Transformers
from benchmarks.results import Row, ms
from vlm_core.checkpoint import resolve_dtype
from vlm_core.model import Model

MOST_OVER_FLOOR = 1.15
PARITY = {torch.float32: 1e-4, torch.bfloat16: 0.25}
"""Logits of deviation near 1: the floor must compute what we do, or its time says nothing."""


def photograph(size: tuple[int, int], seed: int = 0) -> Image.Image:
    """Width x height of coloured clouds: they compress and decode as photographs do."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 255, (40, 53, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
    grain = rng.normal(0, 4, (size[1], size[0], 1))
    return Image.fromarray(np.clip(np.asarray(coarse) + grain, 0, 255).astype(np.uint8))


def model_only(checkpoint: Path, _: Path, repeats: int) -> Iterator[Row]:
    for dtype, name in ((torch.float32, "fp32"), (torch.bfloat16, "bf16")):
        native = resolve_dtype("auto", torch.device("cpu")) == torch.bfloat16 or dtype == torch.float32
        reference = Transformers(checkpoint, dtype)
        floor = Floor(reference)
        model = vlm_core.load(checkpoint, "cpu", str(dtype).removeprefix("torch."))
        image = photograph((352, 352))
        pixel_values = model._pixels([image], model.mask_transform)
        for prompts in (1, 8, 32):
            asked = PHRASES[:prompts]
            conditions = reference.conditions(asked).to(dtype)
            model.encode_text(asked)

            ours = partial(_logits, model, image, asked)
            difference = float((ours() - floor.logits(pixel_values, conditions)).abs().max())
            assert difference < PARITY[dtype], f"ours and the floor differ by {difference}"
            times = paired({"floor": partial(floor.logits, pixel_values, conditions), "ours": ours}, repeats)
            rounds = repeats if native and prompts <= 8 else 1
            theirs = paired(
                {"transformers": partial(reference.logits, image, asked), "ours": ours}, rounds, warm=rounds > 1
            )
            case = f"1 image, {prompts} prompts, {name}"
            yield Row(
                case,
                "ours / floor",
                ratios(times["ours"], times["floor"]),
                reference=ms(theirs["transformers"]),
                floor=ms(times["floor"]),
                ours=ms(times["ours"]),
                most=MOST_OVER_FLOOR,
            )
            yield Row(
                case,
                f"transformers / ours{'' if rounds > 1 else ' (one run)'}",
                ratios(theirs["transformers"], theirs["ours"]),
                reference=ms(theirs["transformers"]),
                ours=ms(theirs["ours"]),
            )


def _logits(model: Model, image: Image.Image, prompts: Sequence[str]) -> torch.Tensor:
    return model.decode(model.encode_image(image), model.encode_text(prompts)).logits


def below_the_floor(checkpoint: Path, _: Path, repeats: int) -> Iterator[Row]:
    """The image encoder with linear maps in int8; measured, not offered: docs/decisions/below-the-floor.md."""
    model = vlm_core.load(checkpoint, "cpu", "float32")
    assert model.decoder is not None
    exact, taps = model.clip.image_encoder, model.decoder.config.taps
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rounded = torch.ao.quantization.quantize_dynamic(exact, {torch.nn.Linear}, dtype=torch.qint8)
    pixel_values = model._pixels([photograph((352, 352))], model.mask_transform)
    with torch.inference_mode():
        times = paired(
            {
                "float32": partial(exact, pixel_values, taps, pooled=False),
                "int8": partial(rounded, pixel_values, taps, pooled=False),
            },
            2 * repeats,
        )
        decode = partial(model.decoder, conditions=model.encode_text(PHRASES)[None], grid_hw=(22, 22))
        sides = [decode(tower(pixel_values, taps, pooled=False).taps) >= 0 for tower in (exact, rounded)]
    moved = 100 * float((sides[0] != sides[1]).float().mean())
    yield Row(
        f"encoder in int8, a stretch ({moved:.1f} % of pixels change sides)",
        "fp32 / int8",
        ratios(times["float32"], times["int8"]),
        floor=ms(times["float32"]),
        ours=ms(times["int8"]),
        least=1.3,
    )


def masks_and_tags(checkpoint: Path, _: Path, repeats: int) -> Iterator[Row]:
    model = vlm_core.load(checkpoint, "cpu", "auto")
    image = photograph((640, 480))
    times = paired(
        {
            "masks": partial(model.encode_image, image),
            "separate": partial(model.encode_image, image, tags=True),
            "shared": partial(model.encode_image, image, tags=True, shared_pass=True),
        },
        2 * repeats,
    )
    for name, most in (("separate", 1.6), ("shared", 1.25)):
        yield Row(
            f"masks + tags of one image, {name} pass",
            "with tags / masks alone",
            ratios(times[name], times["masks"]),
            floor=ms(times["masks"]),
            ours=ms(times[name]),
            most=most,
        )


def brush_codec(_: Path, __: Path, repeats: int) -> Iterator[Row]:
    size_hw = (3000, 4000)
    for name, mask, least in (("smooth", smooth_mask(size_hw), 15.0), ("ragged", ragged_mask(size_hw), 40.0)):
        rgba = np.repeat(mask.ravel().astype(np.uint8) * 255, 4)
        rle = encode_mask(mask)
        assert rle == list(brush.encode_rle(rgba)), "the bytes differ from the SDK's"
        assert (decode_mask(rle, size_hw) == mask).all()
        times = paired(
            {
                "sdk decode": partial(brush.decode_rle, rle),
                "decode": partial(decode_mask, rle, size_hw),
                "sdk encode": partial(brush.encode_rle, rgba),
                "encode": partial(encode_mask, mask),
            },
            2 * repeats,
        )
        for what, bound in (("decode", least), ("encode", 5.0)):
            yield Row(
                f"brush RLE, 4000 x 3000, {name}: {what}",
                "SDK / ours",
                ratios(times[f"sdk {what}"], times[what]),
                reference=ms(times[f"sdk {what}"]),
                ours=ms(times[what]),
                least=bound,
            )
