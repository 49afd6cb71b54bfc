"""R2Gen's vocabulary: the words of the training reports that are not rare, as a tokenizer that is made before a run.

Id 0 begins a report, ends it and fills it up; ids from 1 on are the words in their order, `<unk>` among them.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from r2kg.config.needs import Artefact
from r2kg.config.run import Run
from r2kg.graph.embed import embed
from r2kg.modules.config import TextEncoder
from r2kg.modules.hub import weight_hashes
from r2kg.modules.llm.packing import IGNORED
from r2kg.modules.packaged import text_encoder
from shards.clean import UNKNOWN, vocabulary
from shards.errors import ConfigError, DataError
from shards.stream.index import read_targets
from shards.tars.format import Manifest

END = "<end>"
"""Begins and ends a report; id 0."""
VECTORS = "vectors.safetensors"
UNREAD = "unread.json"
"""Key of a training study whose report could not be read, so that its words are not counted → cause."""
SHOWN = 5
"""Of those, so many are printed."""
WORDS = 761
"""Ids of R2Gen's whole IU X-Ray, for counting where there is no vocabulary."""
TEXT_WIDTH = 768
"""Channels of BERT, for counting where there are no words' vectors."""


def artefact(min_count: int, text: TextEncoder | None, run: Run, manifest: Manifest, into: str) -> Artefact:
    """The vocabulary of the training reports and, where asked for, its words' vectors, as what a run needs made.

    Raises:
        ConfigError, RetryableError: the text encoder cannot be had, before any report is read.
    """

    def make(folder: Path) -> None:
        unread: dict[str, str] | None = {} if run.data.on_bad == "skip" else None
        reports = read_targets(run.data.shards, "train", unread)
        write_vocabulary(vocabulary(reports, min_count), folder, text)
        if unread:
            (folder / UNREAD).write_text(json.dumps(unread, indent=1) + "\n")
            print(f"The words of {len(unread):,} reports are not counted, which cannot be read; {UNREAD} names all.")
            print("\n".join(f"Not counted: {key}: {cause}" for key, cause in [*unread.items()][:SHOWN]))

    settings: dict[str, Any] = {"shards": manifest.fingerprint, "min_count": min_count}
    if text:
        weights = weight_hashes(text_encoder(text.source, "model.transformer.text.source"), text.revision)
        settings["text"] = text.model_dump(mode="json") | {"weights": weights}
    return Artefact(
        name="words",
        settings=settings,
        make=make,
        into=into,
        sentence=f"Counting the words of {manifest.splits['train'].studies:,} reports",
    )


def write_vocabulary(words: Sequence[str], folder: Path, text: TextEncoder | None = None) -> None:
    """Write words as a tokenizer, and the vectors that a text encoder gives to each alone.

    Raises:
        DataError: there is no word but `<unk>`.
        ConfigError: an encoder that cannot be had.
    """
    if not {*words} - {UNKNOWN}:
        raise DataError("no word stands in the training reports often enough: lower model.min_count")
    ids = {END: 0} | {word: 1 + at for at, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, pad_token=END).save_pretrained(folder)
    if text:
        save_file({"vectors": embed([END, *words], text).contiguous()}, folder / VECTORS)


def read_vocabulary(at: str) -> PreTrainedTokenizerFast | None:
    """The tokenizer that `write_vocabulary` wrote; None on the meta device without one, where it is only counted."""
    if not at:
        if torch.get_default_device().type != "meta":
            raise ConfigError("model.words_at is empty: the vocabulary is made before the run (prepare)")
        return None
    try:
        return PreTrainedTokenizerFast.from_pretrained(at)
    except (OSError, ValueError) as error:
        raise DataError(f"{at} holds no vocabulary ({type(error).__name__}): delete it, submit the run again") from None


def read_vectors(at: str) -> Tensor:
    """The words' vectors, fp32 [V + 1, D_t]; DataError where there are none."""
    if not at:
        return torch.empty(WORDS, TEXT_WIDTH)
    try:
        return load_file(Path(at) / VECTORS)["vectors"]
    except (OSError, KeyError, SafetensorError) as error:
        raise DataError(f"{at} holds no words' vectors ({type(error).__name__}): delete it, submit again") from None


def encode(tokenizer: PreTrainedTokenizerFast, reports: Sequence[str | None], most: int) -> tuple[Tensor, Tensor]:
    """Reports as what is read and what is to be written, int64 [B, T] both; None is a row without a target.

    R2Gen's: 0, words, 0, cut to `most` ids, so that a report which is cut has no end. Where nothing is to be written
    the target is `IGNORED`.
    """
    written = [
        [] if text is None else [0, *tokenizer(text, add_special_tokens=False).input_ids, 0][:most] for text in reports
    ]
    longest = max(2, *map(len, written))
    read = torch.tensor([(ids + [0] * (longest - len(ids)))[:-1] for ids in written])
    wanted = torch.tensor([(ids[1:] + [IGNORED] * longest)[: longest - 1] for ids in written])
    return read, wanted
