"""Generated scenes as training data: what the recipes draw from for the demo checkpoint."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from vlm_core.data import PhraseSample
from vlm_core.demo.drawing import COLOURS
from vlm_core.demo.phrases import Description, false_descriptions
from vlm_core.demo.scenes import KNOWN_SHAPES, Scene, generate_scene, sample_true

NEVER_TAUGHT = ("star",)
"""In the vocabulary, but in no text and no picture of the training: the demo project teaches it."""

Lesson = Literal["names", "all"]
"""What is asked: the known shapes' bare names, or everything that phrases can say.

A small model that gets all at once learns colours and nothing else for a long time.
"""

WORDS_FILE = Path(__file__).with_name("words.txt")
"""Common English words, most frequent first (by their order in BERT's uncased vocabulary, Apache-2.0)."""


def common_words() -> list[str]:
    """Words that mean nothing in a scene; "star" is among them."""
    return WORDS_FILE.read_text(encoding="utf-8").split()


class SceneSource:
    """Both a `PairSource` and a `PhraseSource` over generated scenes, kept small in memory.

    Scenes are drawn with the sides that users see, squashed to the model's square input. A training run draws
    each scene once and asks it about many phrases.
    """

    def __init__(
        self,
        seeds: Sequence[int],
        side: int,
        *,
        lesson: Lesson = "all",
        present: float = 0.55,
        unknown_words: float = 0.08,
    ) -> None:
        """Prepare; scenes are drawn when they are first asked for.

        Args:
            seeds: one scene each.
            side: the model's square input, px.
            lesson: what is asked of the scenes; see `Lesson`.
            present: share of phrases whose object is there.
            unknown_words: share of phrases that name a thing no scene has ("banana", "red engine").
        """
        self.seeds = seeds
        self.side = side
        self.lesson = lesson
        self.present = present
        self.unknown_words = unknown_words
        self._words = [word for word in common_words() if word not in NEVER_TAUGHT]
        self._scenes: dict[int, tuple[Scene, npt.NDArray[np.uint8], npt.NDArray[np.uint8]]] = {}

    def of_lesson(self, lesson: Lesson) -> SceneSource:
        """The same scenes in another lesson; drawings are shared."""
        other = SceneSource(
            self.seeds, self.side, lesson=lesson, present=self.present, unknown_words=self.unknown_words
        )
        other._scenes = self._scenes
        return other

    def __len__(self) -> int:
        """The number of scenes."""
        return len(self.seeds)

    def image(self, index: int) -> Image.Image:
        """The scene's picture, squashed to the model's input."""
        return Image.fromarray(self._scene(index)[1])

    def text(self, index: int, rng: np.random.Generator) -> str:
        """One of the scene's captions."""
        captions = self.texts_of(index)
        return captions[int(rng.integers(len(captions)))]

    def texts_of(self, index: int) -> Sequence[str]:
        """All of the scene's captions."""
        return self._scene(index)[0].captions

    def vocabulary(self) -> Iterator[str]:
        """Common words, and captions and phrases of the first thousand scenes."""
        yield from common_words()
        for index in range(min(1000, len(self.seeds))):
            scene = generate_scene(self.seeds[index])
            yield from scene.captions
            yield from (phrase for phrase, _ in scene.phrases())

    def sample(self, index: int, rng: np.random.Generator, count: int) -> PhraseSample:
        """`count` phrases of one scene: most of them there, most others nearly true, a few of unknown words."""
        scene, pixels, covers = self._scene(index)
        if self.lesson == "names":
            return self._names(index, rng, count)
        phrases: list[str] = []
        masks = np.zeros((count, self.side, self.side), dtype=np.float32)
        wanted = int(rng.binomial(count, self.present))
        for description, meant in sample_true(scene, rng, wanted):
            phrases.append(description.words(rng))
            masks[len(phrases) - 1] = covers[list(meant)].max(axis=0).astype(np.float32) / 255.0
        unknown = int(rng.binomial(count, self.unknown_words))
        room = count - len(phrases)
        true = [description for description, _ in scene.true_descriptions]
        absent = false_descriptions(scene.attributes, true, KNOWN_SHAPES, rng, max(0, room - unknown))
        phrases += [description.words(rng) for description in absent]
        while len(phrases) < count:
            phrases.append(self._unknown_phrase(rng))
        return PhraseSample(Image.fromarray(pixels), tuple(phrases), masks, self.text(index, rng))

    def _names(self, index: int, rng: np.random.Generator, count: int) -> PhraseSample:
        scene, pixels, covers = self._scene(index)
        masks = np.zeros((count, self.side, self.side), dtype=np.float32)
        names = [KNOWN_SHAPES[i % len(KNOWN_SHAPES)] for i in rng.permutation(max(count, len(KNOWN_SHAPES)))[:count]]
        for slot, name in enumerate(names):
            meant = [i for i, item in enumerate(scene.attributes) if item.named and item.shape == name]
            if meant:
                masks[slot] = covers[meant].max(axis=0).astype(np.float32) / 255.0
        return PhraseSample(Image.fromarray(pixels), tuple(names), masks, self.text(index, rng))

    def _unknown_phrase(self, rng: np.random.Generator) -> str:
        word = self._words[int(rng.integers(len(self._words)))]
        colour = str(rng.choice(np.array(list(COLOURS)))) if rng.random() < 0.35 else None
        position = "left" if rng.random() < 0.08 else None
        return replace(Description(colour=colour, position=position), shape=word).words(rng)

    def _scene(self, index: int) -> tuple[Scene, npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
        if index not in self._scenes:
            # Drawn at one and a half times the input: enough to be shrunk as a user's picture is, and cheap.
            scene = generate_scene(self.seeds[index], draw_size=(self.side * 3 // 2, self.side * 3 // 2))
            squash = (self.side, self.side)
            pixels = np.asarray(scene.image.resize(squash, Image.Resampling.BILINEAR))
            covers = np.stack(
                [
                    np.asarray(Image.fromarray(item.mask).convert("L").resize(squash, Image.Resampling.BOX))
                    for item in scene.objects
                ]
            )
            # The full-size picture and masks are let go; what phrases need is kept.
            light = replace(scene, image=Image.new("RGB", (1, 1)), objects=())
            self._scenes[index] = (light, pixels, covers)
        return self._scenes[index]


def validation_samples(seeds: Sequence[int]) -> Iterator[PhraseSample]:
    """Scenes at their own size with all of :meth:`Scene.phrases` and :meth:`Scene.absent_phrases`."""
    for seed in seeds:
        scene = generate_scene(seed)
        present, absent = scene.phrases(), scene.absent_phrases()
        masks = np.zeros((len(present) + len(absent), scene.size[1], scene.size[0]), dtype=np.float32)
        for slot, (_, mask) in enumerate(present):
            masks[slot] = mask
        phrases = (*(phrase for phrase, _ in present), *absent)
        yield PhraseSample(scene.image, phrases, masks, scene.captions[0], texts=scene.captions)
