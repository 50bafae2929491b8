"""A WordPiece vocabulary of one's own, for text encoders that are trained from scratch."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from vlm_core.preprocess import TextTokenizer

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
_CHARACTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
_WORD = re.compile(r"[a-z0-9]+|[^\sa-z0-9]")


def words_of(texts: Iterable[str], limit: int = 30_000) -> list[str]:
    """The most frequent lower-cased words of some texts, at most `limit`, in alphabetical order."""
    counts = Counter(word for text in texts for word in _WORD.findall(text.lower()))
    frequent = sorted(counts, key=lambda word: (-counts[word], word))[:limit]
    return sorted(frequent)


def build_tokenizer(words: Iterable[str], max_tokens: int) -> TextTokenizer:
    """A WordPiece tokenizer that knows these words whole and spells all others.

    Args:
        words: lower-case words, in the order that gives their ids; repeated ones count once.
        max_tokens: longest text in tokens, special tokens included.

    Returns:
        A tokenizer whose ids are the same for the same words. Letters and digits are always in it, so that
        only foreign characters become [UNK].
    """
    pieces = [*SPECIAL_TOKENS, *_CHARACTERS, *(f"##{c}" for c in _CHARACTERS), ",", ".", "-", "'"]
    vocabulary = {piece: index for index, piece in enumerate(dict.fromkeys([*pieces, *words]))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", vocabulary["[SEP]"]), ("[CLS]", vocabulary["[CLS]"]))
    wrapped = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=max_tokens,
    )
    return TextTokenizer(wrapped, max_tokens)
