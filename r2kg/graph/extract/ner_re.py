"""The ner-re extractor: a span model that finds entities, and a pair model that relates those of a sentence.

Both are an encoder of BERT's kind with a small head, trained as in PURE (Zhong & Chen 2021, arXiv 2010.12812) on what
another extractor, or RadGraph, says of reports: as R2GenKG's graph was made, for many more reports than a language
model could be paid for. Sentences are those of `prompt.sentences_of`, so that a sentence has the number it has for llm.
"""

import json
import re
import shutil
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import permutations
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, Literal, cast

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_model, save_model
from transformers import AutoConfig, AutoModel, AutoTokenizer

from r2kg.graph.extract import spans
from r2kg.graph.extract.evaluate import Score
from r2kg.graph.extract.lexicon import spellings
from r2kg.graph.extract.prompt import Heard, sentences_of
from r2kg.graph.extract.relate import Span
from r2kg.graph.extract.rules import Rules, composed
from r2kg.graph.extract.spans import Inputs, Mention, NerReConfig, SpanClassifier, Text
from r2kg.graph.schema import CERTAINTIES, KINDS, RELATIONS, Annotation, Certainty, Entity, Extractor, Kind, Relation
from shards.errors import ConfigError, DataError
from shards.graphs.radgraph import Document, documents_in
from shards.tars.place import read_whole, sha256_of

VERSION = 1
CARD = "ner_re.json"
"""File that says what the directory is: version, config, hashes of the others, what the models were trained on."""
FILES = [f"{part}/{name}" for part in ("entity", "relation") for name in ("model.safetensors", "config.json")]
FILES += ["tokenizer.json", "tokenizer_config.json"]
CLASSES = [(kind, certainty) for kind in KINDS for certainty in CERTAINTIES]
"""Of spans, from class 1; 0 is no entity. Those of pairs are `RELATIONS`, likewise."""
KIND_OF: dict[str, Kind] = {"anatomy": "anatomy", "observation": "disorder", "measurement": "size"}
"""What RadGraph's entities are in this schema."""
Labelled = tuple[str, Annotation]
"""A report and what is said of it."""


@dataclass
class Usage:
    """What an extractor left out of the reports that it was given."""

    cut_sentences: int = 0  # longer than the encoder reads at once: nothing behind is found
    far_pairs: int = 0  # of entities of a sentence that `Inputs.pair` does not relate


class _Card(Heard):
    version: Literal[1]
    classes: tuple[tuple[str, ...], ...]
    config: NerReConfig
    sha256: dict[str, str]


@dataclass(frozen=True)
class NerRe:
    """An `Extractor` by the models in a directory. Weights are loaded when they are first needed, once in a process."""

    directory: str
    config: NerReConfig
    sha256: dict[str, str]
    """File → hash, as they were when the directory was loaded."""
    batch: int = 4096
    """Tokens of a mini-batch, padding included. It decides memory and speed, not answers."""
    usage: Usage = field(default_factory=Usage, compare=False, repr=False)  # a pickled copy begins at 0
    name = "ner-re"

    @classmethod
    def load(cls, directory: str | Path, batch: int = 4096) -> "NerRe":
        """What `train_ner_re` wrote.

        Raises:
            ConfigError: no such directory, or another's.
            DataError: files of it are missing or changed.
        """
        folder = Path(directory).expanduser().resolve()
        if batch < 1:
            raise ConfigError(f"batch={batch} cannot work: tokens of a mini-batch, 1 at least")
        if not (folder / CARD).is_file():
            what = "holds no " + CARD if folder.is_dir() else "is no directory"
            raise ConfigError(f"{directory} {what}: name a directory that train_ner_re wrote")
        try:
            card = _Card.model_validate_json(read_whole(folder / CARD, 1 << 20))
            if card.classes != (*CLASSES, RELATIONS) or card.sha256.keys() != {*FILES}:
                raise ValueError("it is of another schema")
        except (OSError, ValueError) as error:
            raise DataError(f"{folder / CARD} is not readable: {_why(error)}") from None
        for name, digest in card.sha256.items():
            if not (path := folder / name).is_file() or sha256_of(path) != digest:
                what = "was changed since it was written" if path.is_file() else "is missing"
                raise DataError(f"{path} {what}: copy the directory again, or train ner-re anew")
        return cls(str(folder), card.config, card.sha256, batch)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"usage": Usage()}

    def settings(self) -> dict[str, Any]:
        """Version, configuration, hashes of the files, hash of the lexicon that spells names."""
        words = Rules().settings()["words"]
        return {"version": VERSION, "config": self.config.model_dump(), "sha256": self.sha256, "words": words}

    def annotate(self, reports: Sequence[str]) -> list[Annotation]:
        """As `Extractor.annotate`; no report is refused.

        Raises:
            ConfigError: the directory is not on this machine.
            DataError: files of it changed since it was loaded.
        """
        inputs, entity, relation = _loaded(self.directory, tuple(self.sha256.items()))
        texts = inputs.texts(reports)
        mentions = self._mentions(inputs, entity, texts)
        relations = self._relations(inputs, relation, texts, mentions)
        annotations = []
        for report, text, found, links in zip(reports, texts, mentions, relations, strict=True):
            entities = list[Entity]()
            for number, sentence in enumerate(found):
                for mention in sentence:
                    start, end = text.places[mention.first][0], text.places[mention.last - 1][1]
                    name = named(report[start:end], mention.kind)
                    entities.append(Entity(start, end, number, name, mention.kind, mention.certainty, self.name))
            annotations.append(Annotation(tuple(entities), tuple(links)))
        return annotations

    def _mentions(self, inputs: Inputs, model: SpanClassifier, texts: list[Text]) -> list[list[list[Mention]]]:
        """For every text and sentence the entities, in order: of those that overlap the most probable."""
        asked = [inputs.sentence(text, number) for text in texts for number in range(len(text.sentences))]
        self.usage.cut_sentences += sum(cut for _, _, cut in asked)
        pad = inputs.tokenizer.pad_token_id
        said = iter(zip(asked, spans.classify(model, [row for row, _, _ in asked], pad, self.batch), strict=True))
        mentions = list[list[list[Mention]]]()
        for text in texts:
            mentions.append([])
            for _ in text.sentences:
                (_, words, _), classes = next(said)
                taken, kept = set[int](), list[Mention]()
                found = [(-score, *span, which) for span, (which, score) in zip(words, classes, strict=True) if which]
                for _, first, last, which in sorted(found):
                    if taken.isdisjoint(range(first, last)):
                        taken |= {*range(first, last)}
                        kept.append(Mention(first, last, *CLASSES[which - 1]))
                mentions[-1].append(sorted(kept))
        return mentions

    def _relations(
        self, inputs: Inputs, model: SpanClassifier, texts: list[Text], mentions: list[list[list[Mention]]]
    ) -> list[list[Relation]]:
        """For every text the relations, by the positions of their ends among its entities."""
        relations, asked, where = [list[Relation]() for _ in texts], [], []
        for at, (text, found) in enumerate(zip(texts, mentions, strict=True)):
            before = 0
            for number, sentence in enumerate(found):
                for head, tail in permutations(range(len(sentence)), 2):
                    if (row := inputs.pair(text, number, sentence, head, tail)) is None:
                        self.usage.far_pairs += 1
                    else:
                        asked.append(row)
                        where.append((at, before + head, before + tail))
                before += len(sentence)
        answers = spans.classify(model, asked, inputs.tokenizer.pad_token_id, self.batch)
        for (at, head, tail), ((which, _),) in zip(where, answers, strict=True):
            if which:
                relations[at].append(Relation(head, RELATIONS[which - 1], tail, self.name))
        return relations


def named(words: str, kind: Kind) -> str:
    """Name of an entity of these words: of a term with several spellings the first, an anatomy's side and level before
    it, as `Rules` names it; words that the lexicon does not know are their own name."""
    split = words.lower().split()
    for start in range(len(split) if kind == "anatomy" else 1):
        known = spellings().get(" ".join(split[start:]))
        whole = composed([Span(start, len(split), *known)], split) if known else []
        if whole and not whole[0].start:
            return whole[0].name
    return " ".join(split)


def train_ner_re(examples: Iterable[Labelled], out: Path, config: NerReConfig) -> NerRe:
    """Train both models on (report, annotation) pairs and save them in the directory `out`: safetensors and JSON.

    It holds words of the reports: keep it where the reports may be kept. A directory already at `out` is replaced, at
    once. On a CPU the same examples, settings and thread count make the same weights; the process's own random state
    is not touched. The card counts what could not be learned: entities longer than `max_span`, across sentences or in
    another's place, and relations between sentences or too far apart.

    Raises:
        ConfigError: the encoder cannot be had or is of another kind; something else is at `out`.
        DataError: no example has an entity.
    """
    known = [(report, annotation) for report, annotation in examples if report.strip()]
    if not any(annotation.entities for _, annotation in known):
        raise DataError(f"none of {len(known)} reports has an entity: there is nothing to train ner-re on")
    if out.is_file() or (out.is_dir() and any(out.iterdir()) and not (out / CARD).is_file()):
        raise ConfigError(f"{out} is there and is no directory of ner-re: name another place")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    made, losses = dict[str, SpanClassifier](), dict[str, float]()
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        tokenizer, encoder = spans.load_encoder(config, [report for report, _ in known])
        inputs = Inputs(tokenizer, config.max_span, config.context, config.pair_positions)
        sentences, links, counts = _lessons(inputs, known)
        for part, lessons, how in (("entity", sentences, config.entity), ("relation", links, config.relation)):
            torch.manual_seed(config.seed)
            model = _model(config, part, encoder()).to(device)
            loss = spans.fit(model, lessons, tokenizer.pad_token_id, how, config.warmup, config.seed)
            losses[f"{part}_loss"], made[part] = round(loss, 4), model
    out.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    tokenizer.save_pretrained(folder)
    for part, model in made.items():
        (folder / part).mkdir()
        model.encoder.config.save_pretrained(folder / part)
        save_model(model.cpu(), str(folder / part / "model.safetensors"))
    card = {
        "version": VERSION, "classes": [*CLASSES, RELATIONS], "config": config.model_dump(),
        "sha256": {name: sha256_of(folder / name) for name in FILES}, "reports": len(known), **counts, **losses,
    }  # fmt: skip
    (folder / CARD).write_text(json.dumps(card, indent=2) + "\n")
    replaced = Path(mkdtemp(prefix=f".{out.name}-old-", dir=out.parent))
    if out.exists():
        out.rename(replaced / out.name)
    folder.rename(out)
    shutil.rmtree(replaced)
    return NerRe.load(out)


def _model(config: NerReConfig, part: str, encoder: Any) -> SpanClassifier:
    """The span model, or the pair model, around an encoder."""
    entity = part == "entity"
    classes = 1 + len(CLASSES if entity else RELATIONS)
    return SpanClassifier(encoder, classes, config.hidden, config.dropout, config.max_span if entity else 0)


def _lessons(inputs: Inputs, known: Sequence[Labelled]) -> tuple[list[spans.Example], list[spans.Example], Counter]:
    """Rows with classes for the span model and for the pair model, and how much of what is there is in none."""
    sentences, links, counts = list[spans.Example](), list[spans.Example](), Counter[str]()
    texts = inputs.texts([report for report, _ in known])
    for text, (_, annotation) in zip(texts, known, strict=True):
        placed, related = _placed(text, annotation.entities), Counter[str]()
        wanted = {(r.head, r.tail): 1 + RELATIONS.index(r.kind) for r in annotation.relations}
        for number in range(len(text.sentences)):
            row, words, cut = inputs.sentence(text, number)
            here = {at: mention for at, (sentence, mention) in placed.items() if sentence == number}
            classes = {(m.first, m.last): 1 + CLASSES.index((m.kind, m.certainty)) for m in here.values()}
            sentences.append((row, tuple(classes.get(span, 0) for span in words)))
            counts.update(sentences=1, cut_sentences=cut, entities=len({*classes} & {*words}))
            order = sorted(here, key=lambda at: here[at])
            mentions = [here[at] for at in order]
            for i, j in permutations(range(len(order)), 2):
                which = wanted.get((order[i], order[j]), 0)
                if pair := inputs.pair(text, number, mentions, i, j):
                    links.append((pair, (which,)))
                    related.update(relations=which > 0)
        counts.update(related, left_out_relations=len(annotation.relations) - related["relations"])
        counts.update(left_out_entities=len(annotation.entities))
    counts["left_out_entities"] -= counts["entities"]
    return sentences, links, counts


def _placed(text: Text, entities: Sequence[Entity]) -> dict[int, tuple[int, Mention]]:
    """Position of an entity → (its sentence, its words), for those that stand in one sentence."""
    placed = {}
    for which, entity in enumerate(entities):
        inside = [at for at, (start, end) in enumerate(text.places) if start < entity.end and end > entity.start]
        for number, (first, last) in enumerate(text.sentences):
            if inside and first <= inside[0] and inside[-1] < last:
                placed[which] = number, Mention(inside[0], inside[-1] + 1, entity.kind, entity.certainty)
    return placed


@lru_cache(maxsize=1)
def _loaded(directory: str, hashes: tuple[tuple[str, str], ...]) -> tuple[Inputs, SpanClassifier, SpanClassifier]:
    """What makes rows, the span model and the pair model, on the GPU where there is one; once in a process."""
    folder, device = Path(directory), torch.device("cuda" if torch.cuda.is_available() else "cpu")
    now, made = NerRe.load(folder), list[SpanClassifier]()
    if now.sha256 != dict(hashes):
        raise DataError(f"{directory} was replaced since it was loaded: load it again")
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        for part in ("entity", "relation"):
            with torch.random.fork_rng(devices=[]):
                description = AutoConfig.from_pretrained(folder / part, local_files_only=True, trust_remote_code=False)
                model = _model(now.config, part, AutoModel.from_config(description, dtype=torch.float32))
            load_model(model, folder / part / "model.safetensors")
            made.append(model.to(device))
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise DataError(f"the models in {directory} cannot be loaded: {' '.join(str(error).split())}") from error
    return Inputs(tokenizer, now.config.max_span, now.config.context, now.config.pair_positions), made[0], made[1]


def _why(error: Exception) -> str:
    """What is wrong with a JSON document, and where; nothing of it is quoted."""
    if not isinstance(error, ValidationError):
        return str(error)
    first = error.errors(include_input=False, include_url=False)[0]
    return f"{'.'.join(map(str, first['loc'])) or 'the whole'}: {first['msg']}"


def score_found(extractor: Extractor, examples: Iterable[Labelled]) -> tuple[Score, Score]:
    """How much of held-out annotations `extractor` finds, micro-averaged: entities by span, kind and certainty, and
    relations by their kind and the span and kind of both ends (Rel+ of PURE)."""
    known, scores = [*examples], list[Score]()
    said = extractor.annotate([report for report, _ in known])
    for items in (
        lambda a: {(e.start, e.end, e.kind, e.certainty) for e in a.entities},
        lambda a: {
            (r.kind, *((*a.entities[end][:2], a.entities[end].kind) for end in (r.head, r.tail))) for r in a.relations
        },
    ):
        true, found = [items(truth) for _, truth in known], [items(annotation) for annotation in said]
        hits = sum(len(t & f) for t, f in zip(true, found, strict=True))
        scores.append(Score.of(hits, sum(map(len, found)), sum(map(len, true))))
    return scores[0], scores[1]


def read_radgraph(path: Path, labeler: Literal["labeler_1", "labeler_2"] = "labeler_1") -> list[Labelled]:
    """Reports and annotations of a file of RadGraph: train.json, dev.json, test.json and others.

    Its labels know less than this schema: anatomy is anatomy, observations are disorders, so that devices, procedures
    and describing words ("mild", "normal") are disorders, and in version 1 sizes too; "left" is an anatomy that
    modifies one, no part of its name.

    Args:
        labeler: whose annotations are taken where a report has those of two, as in test.json.

    Raises:
        ConfigError: no such file.
        DataError: what `documents_in` refuses; an entity that is not at its place.
    """
    examples = []
    for document in documents_in(path, labeler):
        try:
            examples.append((document.text, _annotation(document)))
        except ValueError as error:
            raise DataError(f"{path}, document {document.number}: {error}") from None
    return examples


def _annotation(document: Document) -> Annotation:
    """The annotation that a document is; ValueError for what is not in its text."""
    text, entities = document.text, list[Entity]()
    places, sentences = [token.span() for token in re.finditer(r"\S+", text)], sentences_of(text)
    for number, said in enumerate(document.entities, start=1):
        if said.last >= len(places):
            raise ValueError(f"its entity {number} by place is at tokens that the text does not have")
        start, end = places[said.first][0], places[said.last][1]
        if text[start:end].lower().split() != said.tokens.lower().split():
            raise ValueError(f"its entity {number} by place is not at its tokens")
        kind: Kind = KIND_OF[said.kind]
        sentence, certainty = sum(behind <= start for _, behind in sentences), cast(Certainty, said.certainty)
        entities.append(Entity(start, end, sentence, named(text[start:end], kind), kind, certainty, "radgraph"))
    relations = tuple(Relation(head, cast(Any, kind), tail, "radgraph") for head, kind, tail in document.relations)
    return Annotation(tuple(entities), relations)
