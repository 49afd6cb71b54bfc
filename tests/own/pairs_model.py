"""The model of the second system. Shapes: B batch, V views, S side, P patches, T tokens, D width, W words."""

import json
from pathlib import Path
from typing import Any

import torch
from pairs import MARKS, Pairs
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedTokenizerFast

from r2kg.modules.beams import decode
from r2kg.systems.contract import Term

SPECIAL = ["</s>", "<unk>"]


class Attending:
    """A recurrent decoder behind the beam search's contract; its cache is (state [B, D], memory [B, P, D])."""

    def __init__(self, model: "PairsModel") -> None:
        self.model = model

    def first(self, batch: Tensor) -> tuple[Tensor, Any]:
        """`batch` is the memory [B, P, D]."""
        start = torch.zeros(len(batch), dtype=torch.long, device=batch.device)
        return self.step(start, (batch.mean(1), batch))

    def step(self, tokens: Tensor, cache: Any) -> tuple[Tensor, Any]:
        """One token further."""
        state, memory = cache
        model = self.model
        weight = torch.einsum("bd,bpd->bp", state, memory).softmax(-1)
        seen = torch.einsum("bp,bpd->bd", weight, memory)
        state = model.cell(torch.cat((model.embed(tokens), seen), dim=-1), state)
        return model.head(state), (state, memory)

    def reorder(self, cache: Any, parents: Tensor) -> Any:
        """Rows of the cache."""
        return tuple(part[parents] for part in cache)


class PairsModel(nn.Module):
    """Patches and marks → memory → recurrent decoder; the marks are also guessed from the films."""

    mutable = ("centre", "seen")

    def __init__(self, config: Pairs) -> None:
        super().__init__()
        self.config = config
        self.words = [*SPECIAL, *json.loads((Path(config.words) / "words.json").read_text())]
        table = Tokenizer(WordLevel({word: number for number, word in enumerate(self.words)}, unk_token="<unk>"))
        table.pre_tokenizer = WhitespaceSplit()
        self.tokenizer = PreTrainedTokenizerFast(tokenizer_object=table, eos_token="</s>", unk_token="<unk>")
        self.patch = nn.Conv2d(1, config.width, 8, 8)
        self.mark = nn.Linear(MARKS, config.width)
        self.embed = nn.Embedding(len(self.words), config.width)
        self.cell = nn.GRUCell(2 * config.width, config.width)
        self.head = nn.Linear(config.width, len(self.words))
        self.guess = nn.Linear(config.width, MARKS)
        self.register_buffer("centre", torch.zeros(config.width))
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))

    def collate(self, rows: dict[str, Any]) -> dict[str, Any]:
        """Films, marks and targets; nested, as a batch may be."""
        targets = [json.loads(record).get("target") if ok else None
                   for record, ok in zip(rows["record"], rows["valid"], strict=True)]  # fmt: skip
        ids = [[] if text is None else [*self.tokenizer(text).input_ids[:11], 0] for text in targets]
        longest = max(1, *map(len, ids))
        labels = torch.tensor([row + [-100] * (longest - len(row)) for row in ids])
        marks = torch.tensor([[*data] if data else [0] * MARKS for data in rows["marks"]]) / 251
        held = torch.tensor([bool(data) for data in rows["marks"]])
        return {
            "films": (torch.tensor(rows["images"]), torch.tensor(rows["view_mask"])),
            "marks": {"value": marks, "held": held & torch.tensor(rows["valid"])},
            "labels": labels,
            "index": torch.tensor(rows["index"]),
        }

    def cut(self, records: Any) -> list[bool]:
        """Reports of more than eleven words."""
        return [len(self.tokenizer(json.loads(record)["target"]).input_ids) > 11 for record in records]

    def counts(self, batch: dict[str, Any]) -> dict[str, float]:
        """Tokens of reports, studies with marks."""
        return {"report": float((batch["labels"] >= 0).sum()), "marks": float(batch["marks"]["held"].sum())}

    def memory(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """[B, P + 1, D] and what the films alone say, [B, D]."""
        images, mask = batch["films"]
        dtype = self.patch.weight.dtype
        grid = self.patch(images.flatten(0, 1)[:, None].to(dtype) / 255).flatten(2).transpose(1, 2)  # [B*V, P, D]
        share = mask.to(dtype) / mask.sum(1, keepdim=True).clamp(min=1)
        tokens = (grid.view(*mask.shape, *grid.shape[1:]) * share[..., None, None]).sum(1) - self.centre.to(dtype)
        mark = self.mark(batch["marks"]["value"].to(dtype))
        return torch.cat((tokens, mark[:, None]), dim=1).tanh(), tokens.mean(1)

    def forward(self, batch: dict[str, Any]) -> dict[str, Term]:
        """The two terms; in training the films' mean is followed by a buffer."""
        memory, films = self.memory(batch)
        decoder, labels, count = Attending(self), batch["labels"], self.counts(batch)
        logits, cache = decoder.first(memory)
        steps = [logits]
        for tokens in labels[:, :-1].clamp(min=0).T:
            logits, cache = decoder.step(tokens, cache)
            steps.append(logits)
        nll = F.cross_entropy(torch.stack(steps, 1).float().flatten(0, 1), labels.flatten(), reduction="sum")
        wrong = (self.guess(films).float() - batch["marks"]["value"]).pow(2).mean(1)
        if self.training:
            self.centre.lerp_(films.detach().float().mean(0) + self.centre, 0.1)
            self.seen += len(labels)
        return {
            "report": Term(nll, count["report"]),
            "marks": Term((wrong * batch["marks"]["held"]).sum(), count["marks"], self.config.marks_weight),
        }

    loss = forward

    @torch.no_grad()
    def generate(self, batch: dict[str, Any], decoding: Any) -> list:
        """A report for every row."""
        return decode(Attending(self), self.memory(batch)[0], decoding, self.tokenizer, batch["index"])

    def trainable(self) -> dict[str, list[tuple[str, nn.Parameter]]]:
        """Two groups, as the encoder and the decoder learn at their own rates."""
        groups: dict[str, list[tuple[str, nn.Parameter]]] = {"encoder": [], "decoder": []}
        for name, parameter in self.named_parameters():
            groups["encoder" if name.startswith(("patch", "mark", "guess")) else "decoder"].append((name, parameter))
        return groups

    def gradient_checkpointing(self, on: bool = True) -> None:
        """Nothing here is worth it."""

    def fingerprint(self) -> dict[str, Any]:
        """Nothing here is pretrained."""
        return {}
