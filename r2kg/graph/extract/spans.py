"""Networks of the ner-re extractor, and what they read: words of a report, windows of tokens, spans and pairs of them.

After PURE (Zhong & Chen 2021, arXiv 2010.12812). Shapes: B rows, T tokens, S spans, D the encoder's width, C classes.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, islice
from math import ceil
from pathlib import Path
from typing import Any, NamedTuple

import torch
from huggingface_hub.errors import HFValidationError
from pydantic import Field
from safetensors import SafetensorError
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel, AutoTokenizer, PreTrainedTokenizerFast, get_linear_schedule_with_warmup

import r2kg.modules  # noqa: F401  # quiets libraries before transformers imports them
from r2kg.config.parts import Local, Part
from r2kg.graph.extract.prompt import sentences_of
from r2kg.graph.schema import KINDS, Certainty, Kind
from r2kg.modules.hub import may_come
from shards.errors import ConfigError, RetryableError

POSITIONS = 512
"""Tokens that an encoder of BERT's kind reads at once."""
MOST_PIECES = 16
"""Tokens of one word; what is longer is no word."""
NEAR = 12
"""Entities of a sentence that are further apart, counted in entities, are not compared: a list may be a page long."""
IGNORED = -100
SPECIAL = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
MARKERS = [f"<{end}{role}:{kind}>" for kind in KINDS for role in "SO" for end in ("", "/")]
"""Tokens around subject and object. No report can write one: its signs are words of their own."""
WORD = re.compile(r"\d+(?:\.\d+)?|\w+|[^\w\s]")
BIOMEDBERT = "microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract-fulltext"
REVISIONS = {BIOMEDBERT: "refs/pr/3"}
"""Encoder → where its weights are safetensors, for those whose main branch holds pickled ones alone."""


class Tiny(Part):
    """The random BERT that encoder="tiny" is; its WordPiece tokenizer has the words of the training reports."""

    width: int = Field(default=96, ge=16)
    """Hidden size."""
    layers: int = Field(default=2, ge=1)
    """Transformer layers."""
    heads: int = Field(default=4, ge=1)
    """Attention heads."""
    vocabulary: int = Field(default=2000, ge=100)
    """Tokens of the tokenizer, at most."""


class Fit(Part):
    """How one of the two models is trained, by AdamW with a linear warm-up and decay."""

    lr: float = Field(gt=0)
    """Peak learning rate of the encoder."""
    head_lr: float = Field(gt=0)
    """Peak learning rate of what is new on top of it."""
    batch: int = Field(ge=1)
    """Sentences, or pairs, per step."""
    epochs: int = Field(ge=1)
    """Passes over the training reports."""


class NerReConfig(Part):
    """Sizes and training. Defaults are those of ReXKG's scripts, which R2GenKG's graph follows: span length, rates,
    batches, epochs, warm-up, context, pair tokens; `hidden` and `dropout` are PURE's code's."""

    encoder: Local = BIOMEDBERT
    """Hub id or local directory of an encoder of BERT's kind; "tiny": a small one without any pretraining."""
    revision: str | None = None
    """Hub revision; None is the default branch, for BiomedBERT its pull request 3: main has no safetensors."""
    tiny: Tiny = Tiny()
    """Sizes for encoder="tiny"."""
    max_span: int = Field(default=8, ge=1, le=32)
    """Words of the longest entity; punctuation counts."""
    context: int = Field(default=100, ge=0)
    """Words that are read for a sentence, its own included, where its neighbours have as many; 0: its own."""
    pair_positions: int = Field(default=256, ge=32, le=POSITIONS)
    """Tokens that the pair model reads at once; pairs that are further apart are not related."""
    hidden: int = Field(default=150, ge=1)
    """Width of the span model's two hidden layers, and of its embedding of span widths."""
    dropout: float = Field(default=0.2, ge=0, lt=1)
    """In the span model's head; half of it in the pair model's."""
    entity: Fit = Fit(lr=1e-5, head_lr=5e-4, batch=8, epochs=50)
    """Training of the span model."""
    relation: Fit = Fit(lr=5e-5, head_lr=5e-5, batch=128, epochs=20)
    """Training of the pair model."""
    warmup: float = Field(default=0.1, ge=0, lt=1)
    """Part of the steps over which learning rates rise."""
    seed: int = Field(default=0, ge=0)
    """Of initial weights, dropout and order."""


def tiny() -> NerReConfig:
    """For tests and for machines without a hub: learns the wording of 400 phantom reports in a minute on two cores."""
    return NerReConfig(
        encoder="tiny",
        context=0,
        entity=Fit(lr=1e-3, head_lr=1e-3, batch=16, epochs=8),
        relation=Fit(lr=1e-3, head_lr=1e-3, batch=64, epochs=4),
    )


class Text(NamedTuple):
    """A report as words."""

    places: list[tuple[int, int]]
    """First character of every word, and one behind its last."""
    pieces: list[list[int]]
    """Tokens of every word, one at least."""
    sentences: list[tuple[int, int]]
    """First word of every sentence, and one behind its last; as `sentences_of` divides the report."""


class Mention(NamedTuple):
    """An entity at words [first, last) of a text."""

    first: int
    last: int
    kind: Kind
    certainty: Certainty


class Row(NamedTuple):
    """What a network reads at once, and what it is asked about."""

    ids: tuple[int, ...]
    spans: tuple[tuple[int, int, int], ...]
    """(token, token, width): a span's first and last and its words less one, or the markers of a pair and 0."""


Example = tuple[Row, tuple[int, ...]]
"""A row, and the class of each of its spans."""


@dataclass(frozen=True)
class Inputs:
    """Makes rows of reports."""

    tokenizer: PreTrainedTokenizerFast
    max_span: int
    context: int
    pair_positions: int

    def texts(self, reports: Sequence[str]) -> list[Text]:
        """The reports as words; one without any has no sentence."""
        texts = []
        for report in reports:
            text = Text([], [], [])
            for bounds in sentences_of(report):
                first = len(text.places)
                text.places.extend(word.span() for word in WORD.finditer(report, *bounds))
                text.sentences.append((first, len(text.places)))
            words = [report[slice(*place)].encode("utf-8", "replace").decode() for place in text.places]
            pieces: list[list[int]] = [[] for _ in words]
            if words:
                encoding = self.tokenizer(words, is_split_into_words=True, add_special_tokens=False, verbose=False)
                for token, word in zip(encoding.input_ids, encoding.word_ids(), strict=True):
                    pieces[word].append(token)
            text.pieces.extend(tokens[:MOST_PIECES] or [self.tokenizer.unk_token_id] for tokens in pieces)
            texts.append(text)
        return texts

    def sentence(self, text: Text, number: int) -> tuple[Row, list[tuple[int, int]], bool]:
        """(row, the words [first, last) of its spans, whether it is cut): all spans of a sentence, with its context."""
        start, whole = text.sentences[number]
        room = POSITIONS - 2
        end = start + sum(total <= room for total in accumulate(map(len, text.pieces[start:whole])))
        low, high = window(text, start, end, *self._around(text, number), room)
        begins = [*accumulate(map(len, text.pieces[low:high]), initial=1)]  # behind [CLS]
        words = [(f, t) for f in range(start, end) for t in range(f + 1, min(f + self.max_span, end) + 1)]
        ids = [token for pieces in text.pieces[low:high] for token in pieces]
        spans = tuple((begins[f - low], begins[t - low] - 1, t - f - 1) for f, t in words)
        return Row((self.tokenizer.cls_token_id, *ids, self.tokenizer.sep_token_id), spans), words, end < whole

    def pair(self, text: Text, number: int, mentions: Sequence[Mention], i: int, j: int) -> Row | None:
        """A sentence, of which these are the entities, with markers around the i-th, the subject, and the j-th.

        None where they are not `NEAR`, or more stands between them than `pair_positions` tokens hold.
        """
        subject, target = mentions[i], mentions[j]
        needed = min(subject.first, target.first), max(subject.last, target.last)
        room = self.pair_positions - 6
        if abs(i - j) > NEAR or sum(map(len, text.pieces[slice(*needed)])) > room:
            return None
        low, high = window(text, *needed, *self._around(text, number), room)
        ids, at = [self.tokenizer.cls_token_id], dict[str, int]()
        marked = (("S", subject), ("O", target))
        known = self.tokenizer.convert_tokens_to_ids
        for word in range(low, high):
            for role, mention in marked:
                if word == mention.first:
                    at[role] = len(ids)
                    ids.append(known(f"<{role}:{mention.kind}>"))
            ids += text.pieces[word]
            ids += [known(f"</{role}:{mention.kind}>") for role, mention in marked if word == mention.last - 1]
        return Row((*ids, self.tokenizer.sep_token_id), ((at["S"], at["O"], 0),))

    def _around(self, text: Text, number: int) -> tuple[int, int]:
        """Words that may be read for a sentence: those of its neighbours, up to `context` words in all."""
        start, end = text.sentences[number]
        margin = max(0, self.context - (end - start)) // 2
        return max(0, start - margin), min(len(text.pieces), end + margin)


def window(text: Text, first: int, last: int, low: int, high: int, room: int) -> tuple[int, int]:
    """Words [first, last), and on both sides as many of [low, high) as `room` tokens hold with them."""
    room -= sum(map(len, text.pieces[first:last]))
    left = right = True
    while left or right:
        if left := first > low and len(text.pieces[first - 1]) <= room:
            first -= 1
            room -= len(text.pieces[first])
        if right := last < high and len(text.pieces[last]) <= room:
            room -= len(text.pieces[last])
            last += 1
    return first, last


class SpanClassifier(nn.Module):
    """Two states of an encoder → classes. Both models of PURE are it.

    With `max_span` spans of words: [h_start; h_end; φ(width)] and two hidden layers, φ as wide as they are; without,
    pairs: [h_S; h_O], a norm and a linear layer.
    """

    def __init__(self, encoder: Any, classes: int, hidden: int, dropout: float, max_span: int = 0) -> None:
        super().__init__()
        self.encoder = encoder
        states = 2 * encoder.config.hidden_size
        self.width = nn.Embedding(max_span, hidden) if max_span else None
        layers = [
            *(nn.Linear(states + hidden, hidden), nn.ReLU(), nn.Dropout(dropout)),
            *(nn.Linear(hidden, hidden), nn.ReLU(), nn.Dropout(dropout), nn.Linear(hidden, classes)),
        ]
        if not max_span:
            layers = [nn.LayerNorm(states), nn.Dropout(dropout / 2), nn.Linear(states, classes)]
        self.head = nn.Sequential(*layers)

    def forward(self, input_ids: Tensor, mask: Tensor, spans: Tensor) -> Tensor:
        """Logits [B, S, C] of input_ids and mask, int64 [B, T], and spans, int64 [B, S, 3]; padding may be anything."""
        states = self.encoder(input_ids=input_ids, attention_mask=mask).last_hidden_state  # [B, T, D]
        ends = spans[..., :2].flatten(1)[..., None].expand(-1, -1, states.shape[-1])  # [B, 2*S, D]
        both = states.gather(1, ends).unflatten(1, (-1, 2)).flatten(2)  # [B, S, 2*D]
        if self.width is not None:
            both = torch.cat((both, self.width(spans[..., 2])), dim=-1)
        return self.head(both)


def collate(rows: Sequence[Row], pad: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """input_ids, mask and spans of `SpanClassifier.forward`, padded to the longest."""
    longest, most = max(len(row.ids) for row in rows), max(len(row.spans) for row in rows)
    input_ids = torch.tensor([[*row.ids, *[pad] * (longest - len(row.ids))] for row in rows])
    mask = torch.tensor([[1] * len(row.ids) + [0] * (longest - len(row.ids)) for row in rows])
    spans = torch.tensor([[*row.spans, *[(0, 0, 0)] * (most - len(row.spans))] for row in rows])
    return input_ids.to(device), mask.to(device), spans.to(device)


def fit(model: SpanClassifier, examples: list[Example], pad: int, how: Fit, warmup: float, seed: int) -> float:
    """Train encoder and head by AdamW, each with its learning rate; the mean loss of the last epoch.

    Rows are batched by length and batches shuffled. Rates rise linearly over the part `warmup` of the steps and fall
    to 0. The loss is the mean over spans, where PURE sums: to AdamW that is nearly the same.
    """
    random, device = torch.Generator().manual_seed(seed), next(model.parameters()).device
    encoder = [*model.encoder.parameters()]
    inside = {id(parameter) for parameter in encoder}
    head = [parameter for parameter in model.parameters() if id(parameter) not in inside]
    optimiser = torch.optim.AdamW([{"params": encoder, "lr": how.lr}, {"params": head, "lr": how.head_lr}])
    steps = how.epochs * ceil(len(examples) / how.batch)
    schedule = get_linear_schedule_with_warmup(optimiser, int(warmup * steps), steps)
    losses = list[float]()
    model.train()
    for _ in range(how.epochs):
        shuffled = [examples[i] for i in torch.randperm(len(examples), generator=random).tolist()]
        shuffled.sort(key=lambda example: len(example[0].ids))
        batches = [shuffled[start : start + how.batch] for start in range(0, len(shuffled), how.batch)]
        losses = []
        for number in torch.randperm(len(batches), generator=random).tolist():
            rows, classes = zip(*batches[number], strict=True)
            logits = model(*collate(rows, pad, device))
            labels = [[*row, *[IGNORED] * (logits.shape[1] - len(row))] for row in classes]
            targets = torch.tensor(labels, device=device).flatten()
            loss = F.cross_entropy(logits.flatten(0, 1), targets, ignore_index=IGNORED)
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            schedule.step()
            losses.append(loss.item())
    return sum(losses) / max(1, len(losses))


@torch.no_grad()
def classify(model: SpanClassifier, rows: Sequence[Row], pad: int, tokens: int) -> Iterator[list[tuple[int, float]]]:
    """For every row (class, its probability) of every span; mini-batches have so many tokens, padding included.

    Equal rows are read once, and rows of like length together.
    """
    device, said = next(model.parameters()).device, dict[Row, list[tuple[int, float]]]()
    batches: list[list[Row]] = [[]]
    for row in sorted({*rows}, key=lambda row: (len(row.ids), row)):
        if batches[-1] and (len(batches[-1]) + 1) * len(row.ids) > tokens:
            batches.append([])
        batches[-1].append(row)
    model.eval()
    for batch in filter(None, batches):
        logits = model(*collate(batch, pad, device))
        best = logits.float().softmax(-1).max(-1)
        for row, scores, classes in zip(batch, best.values.tolist(), best.indices.tolist(), strict=True):
            said[row] = [*zip(classes, scores, strict=True)][: len(row.spans)]
    return (said[row] for row in rows)


def build_tiny(texts: Sequence[str], sizes: Tiny) -> tuple[PreTrainedTokenizerFast, Any]:
    """A lower-casing WordPiece tokenizer of the signs and words of `texts`, and the description of a BERT for it."""
    normalizer, splitter = normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer()
    words = Counter(word for t in texts for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(t)))
    signs = sorted({sign for word in words for sign in word})
    # Not WordPieceTrainer: it decides ties by the order of a hash map, never twice the same.
    frequent = sorted(words, key=lambda word: (-words[word], word))
    entries = dict.fromkeys([*SPECIAL.values(), *signs, *(f"##{sign}" for sign in signs), *frequent])
    vocabulary = {entry: number for number, entry in enumerate(islice(entries, sizes.vocabulary))}
    wordpiece = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=100))
    wordpiece.normalizer, wordpiece.pre_tokenizer = normalizer, splitter
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=wordpiece, model_max_length=POSITIONS, **SPECIAL)
    description = AutoConfig.for_model(
        "bert", vocab_size=len(tokenizer), hidden_size=sizes.width, intermediate_size=4 * sizes.width,
        num_hidden_layers=sizes.layers, num_attention_heads=sizes.heads, max_position_embeddings=POSITIONS,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    return tokenizer, description


def load_encoder(config: NerReConfig, texts: Sequence[str]) -> tuple[Any, Callable[[], Any]]:
    """The tokenizer, with the markers, and what makes an encoder with an embedding for each, a new one every time.

    Args:
        texts: what the tokenizer of encoder="tiny" is trained on.

    Raises:
        ConfigError: the encoder is not there, has no safetensors weights, or is not of BERT's kind.
        RetryableError: the hub did not answer.
    """
    make: Callable[[], Any]
    if config.encoder == "tiny":
        tokenizer, description = build_tiny(texts, config.tiny)
        make = partial(AutoModel.from_config, description)
    else:
        tokenizer, make = _of_hub(config)
    tokenizer.add_tokens([AddedToken(marker, special=True, normalized=False) for marker in MARKERS])

    def encoder() -> Any:
        made = make()
        made.resize_token_embeddings(max(len(tokenizer), made.config.vocab_size), mean_resizing=False)
        return made

    return tokenizer, encoder


def _of_hub(config: NerReConfig) -> tuple[Any, Callable[[], Any]]:
    """Tokenizer and maker of `config.encoder`, a hub's model or a directory."""
    folder = Path(config.encoder).expanduser()
    source = str(folder) if folder.is_dir() else config.encoder
    if not folder.is_dir() and config.encoder.startswith(("/", "~", ".")):
        raise ConfigError(f"encoder={config.encoder} is no directory; it may also be the name of a hub's model")
    options: dict[str, Any] = {"revision": config.revision or REVISIONS.get(source), "trust_remote_code": False}
    make = partial(AutoModel.from_pretrained, source, use_safetensors=True, dtype=torch.float32, **options)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, **options)
        known = AutoConfig.from_pretrained(source, **options)
        special = (tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.pad_token_id, tokenizer.unk_token_id)
        positions = getattr(known, "max_position_embeddings", 0)
        if not tokenizer.is_fast or None in special or known.is_encoder_decoder or positions < POSITIONS:
            raise ConfigError(
                f"encoder={config.encoder} is no encoder of BERT's kind: it needs [CLS], [SEP], [PAD] and [UNK] in a "
                f"fast tokenizer, and {POSITIONS} positions"
            )
        make()
    except ConfigError:
        raise
    except (OSError, ValueError, HFValidationError, SafetensorError) as error:
        kind = RetryableError if may_come(error) else ConfigError
        raise kind(
            f"encoder={config.encoder!r} (revision {options['revision'] or 'main'}) cannot be had: "
            f"{' '.join(str(error).split())} — set encoder to a local directory that holds config.json, tokenizer "
            "files and *.safetensors, or connect once"
        ) from error
    return tokenizer, make
