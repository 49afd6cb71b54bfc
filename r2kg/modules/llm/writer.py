"""Language model that writes the answer: any Hugging Face causal LM, with a study's tokens spliced into its prompt.

Shapes: B batch, P soft tokens, A tokens of what is asked about, T answer tokens, L prompt tokens (all of these but
the answer), D the model's width. Packed: R rows of C tokens, K of which are to be predicted.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.modeling_layers import GradientCheckpointingLayer

from r2kg.config.parts import Decoding
from r2kg.modules.adapters import add_adapters
from r2kg.modules.beams import CausalLmDecoder, Generated, Prompt, decode
from r2kg.modules.config import Llm
from r2kg.modules.hub import weight_hashes
from r2kg.modules.llm.load import load_llm
from r2kg.modules.llm.packing import IGNORED, pack, shared_rows
from shards.errors import ConfigError


class Asked(NamedTuple):
    """Text of the studies themselves in their prompts, such as the report that triples are to be taken from."""

    ids: Tensor
    """int64 [B, A], left-padded: what follows in the prompt follows at once."""
    there: Tensor
    """bool [B, A], False on padding."""


def frame(instruction: str) -> tuple[str, str]:
    """Prompt text before and after the soft tokens, as R2GenGPT frames them."""
    return "Human: <Img>", f"</Img> {instruction} \nAssistant:"


class ReportWriter(nn.Module):
    """Prompt `[BOS] before, soft tokens, after, what is asked about, closing` → answer, trained or frozen.

    Frozen, the model stays in eval mode and passes gradients to the soft tokens only. With tuning="lora" the adapters
    go where peft puts them for the architecture (query and value for Llama), and on every linear layer except the LM
    head for an architecture peft has no entry for. On the meta device only the architecture is built, from config.json.

    Args:
        frame: texts before and after the soft tokens and, where studies have texts of their own (`Asked`), behind
            these.

    Attributes:
        tokenizer: the source's own.
        width: D, channels a soft token must have.
        read: tokens that losses were taken over since `padding` was asked, prompts included, and places of padding.

    Raises:
        ConfigError: source not found, no safetensors weights, or no EOS token.
    """

    llm: Any
    before: Tensor
    after: Tensor
    closing: Tensor
    width: int

    def __init__(self, config: Llm, frame: tuple[str, ...]) -> None:
        super().__init__()
        self.config = config
        self.read = [0, 0]
        self._apart: bool | None = None
        self.tokenizer, self.llm = load_llm(config)
        self.width = self.llm.get_input_embeddings().embedding_dim
        self._sha256: dict[str, str] | None = None
        if config.tuning == "frozen":
            self.llm.requires_grad_(False)
        if config.tuning == "lora":
            known = self.llm.config.model_type in TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
            default = None if known else "all-linear"
            quantised = config.quantization != "none"
            add_adapters(self.llm, config.lora, "model.llm.lora", default, quantised, task_type="CAUSAL_LM")
        pieces = [self.tokenizer(text, add_special_tokens=False).input_ids for text in (*frame, "")[:3]]
        if self.tokenizer.bos_token_id is not None:
            pieces[0] = [self.tokenizer.bos_token_id, *pieces[0]]
        for name, ids in zip(("before", "after", "closing"), pieces, strict=True):
            self.register_buffer(name, torch.tensor(ids, dtype=torch.long), persistent=False)
        self.train()

    def tokenize(self, reports: list[str | None], max_tokens: int) -> tuple[Tensor, Tensor]:
        """Turn reports into right-padded targets; None is a row without a target.

        EOS is part of the report before it is cut to `max_tokens`, as R2GenGPT does: a report that is cut has no EOS,
        so the model is not taught that reports end there.

        Returns:
            input_ids int64 [B, T] and labels int64 [B, T], equal except for -100 where there is no report.
        """
        eos, pad = self.tokenizer.eos_token_id, self.tokenizer.pad_token_id
        pad = eos if pad is None else pad  # Llama and GPT-2 have none; any id does, as padding is masked
        written = [
            [] if text is None else [*self.tokenizer(text, add_special_tokens=False).input_ids, eos][:max_tokens]
            for text in reports
        ]
        longest = max(1, *map(len, written))
        input_ids = torch.tensor([ids + [pad] * (longest - len(ids)) for ids in written])
        labels = torch.tensor([ids + [IGNORED] * (longest - len(ids)) for ids in written])
        return input_ids, labels

    def ask(self, texts: list[str], max_tokens: int) -> Asked:
        """The texts that studies are asked about, each cut to its first `max_tokens` tokens."""
        read = [self.tokenizer(text, add_special_tokens=False).input_ids[:max_tokens] for text in texts]
        longest = max((len(ids) for ids in read), default=0)
        padding = [longest - len(ids) for ids in read]
        ids = [[self.tokenizer.eos_token_id] * left + ids for left, ids in zip(padding, read, strict=True)]
        there = [[False] * left + [True] * (longest - left) for left in padding]
        shape = len(texts), longest
        return Asked(torch.tensor(ids, dtype=torch.long).view(shape), torch.tensor(there, dtype=torch.bool).view(shape))

    def lengths(self, reports: list[str]) -> list[int]:
        """Tokens of each report, EOS included, as `tokenize` counts them."""
        return [len(ids) + 1 for ids in self.tokenizer(reports, add_special_tokens=False).input_ids] if reports else []

    def fitting(self, texts: Sequence[str], tokens: int) -> list[int]:
        """Of each text the characters that its first `tokens` tokens spell, all where there are no more.

        Raises:
            ConfigError: a tokenizer that does not tell where in a text its tokens stand.
        """
        if not self.tokenizer.is_fast:
            raise ConfigError(
                f"the tokenizer of model.llm.source={self.config.source} does not tell where its tokens stand in a "
                "text (it is no fast one): leave protocols out that cut references by tokens"
            )
        read = self.tokenizer(list(texts), add_special_tokens=False, return_offsets_mapping=True) if texts else {}
        placed = zip(texts, read.get("offset_mapping", ()), strict=True)
        return [len(text) if len(places) <= tokens else places[tokens - 1][1] for text, places in placed]

    def prompt(self, soft: Tensor, asked: Asked | None = None) -> Tensor:
        """Splice soft tokens [B, P, D] and texts into the prompt's frame: embeddings [B, L, D] in the model's dtype."""
        embed = self.llm.get_input_embeddings()
        before, after, closing = (embed(ids).expand(len(soft), -1, -1) for ids in self._frame())
        texts = () if asked is None else (embed(asked.ids),)
        return torch.cat((before, soft.to(before.dtype), after, *texts, closing), dim=1)

    def prompt_mask(self, soft: Tensor, present: Tensor | None = None, asked: Asked | None = None) -> Tensor:
        """Attention over `prompt`: int64 [B, L], 0 at absent soft tokens and where text is padded.

        Args:
            present: bool [B, P]; None: all are there.
        """
        if present is None:
            present = torch.ones(soft.shape[:2], dtype=torch.bool, device=soft.device)
        before, after, closing = (present.new_ones(len(soft), len(ids)) for ids in self._frame())
        texts = () if asked is None else (asked.there,)
        return torch.cat((before, present, after, *texts, closing), dim=1).long()

    def loss(
        self,
        soft: Tensor,
        input_ids: Tensor,
        labels: Tensor,
        present: Tensor | None = None,
        asked: Asked | None = None,
    ) -> Tensor:
        """Negative log-likelihood of the target tokens, summed: -Σ_t log p(y_t | prompt, y_<t).

        Studies share rows of the language model where that leaves less padding (`model.llm.packing`); each attends to
        itself alone, from position 0 on. The LM head sees the last place of each prompt and the answers, no more.

        Args:
            soft: [B, P, D], a study's tokens; P may be 0.
            input_ids: int64 [B, T], answers with EOS, right-padded.
            labels: int64 [B, T], -100 where input_ids is no target.
            present: bool [B, P], False at soft tokens that are not there; None: all are. The answer is read as if the
                absent ones had never been in the prompt.
            asked: the studies' texts.

        Returns:
            fp32 scalar; 0, with gradients of 0, when no row has a target.
        """
        logits, targets = self.target_logits(soft, input_ids, labels, present, asked)
        return F.cross_entropy(logits.float(), targets, ignore_index=IGNORED, reduction="sum")

    def target_logits(
        self,
        soft: Tensor,
        input_ids: Tensor,
        labels: Tensor,
        present: Tensor | None = None,
        asked: Asked | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Logits [K, words] of the target tokens, and these, int64 [K], row by row as studies share them.

        The arguments are `loss`'s. Without a target K is 1, and the token -100.
        """
        embeds = torch.cat((self.prompt(soft, asked), self.llm.get_input_embeddings()(input_ids)), dim=1)  # [B, L+T, D]
        prompted, is_target = self.prompt_mask(soft, present, asked).bool(), labels != IGNORED
        there = torch.cat((prompted, is_target), dim=1)
        targets = torch.cat((torch.full_like(prompted, IGNORED, dtype=torch.long), labels), dim=1)
        if self.config.packing and self._apart is None:
            self._apart = self._keeps_apart(embeds)
        lengths = there.sum(1).tolist()
        one = self.config.attention == "flash_attention_2"
        rows = shared_rows(lengths, self.width, one) if self.config.packing and self._apart else None
        packed = pack(embeds, there, targets, lengths, rows or [[study] for study in range(len(embeds))])
        self.read = [self.read[0] + sum(lengths), self.read[1] + packed.position.numel() - sum(lengths)]
        chosen = (packed.target[:, 1:] != IGNORED).nonzero(as_tuple=True)
        if not len(chosen[0]):  # every worker calls the LM head, and gets zeros
            chosen = tuple(one.new_zeros(1) for one in chosen)
        mask = None if rows else packed.there.long()
        logits = self._logits(chosen, inputs_embeds=packed.embeds, attention_mask=mask, position_ids=packed.position)
        return logits, packed.target[:, 1:][chosen]

    @torch.no_grad()
    def write(
        self,
        soft: Tensor,
        decoding: Decoding,
        present: Tensor | None = None,
        rows: Tensor | None = None,
        asked: Asked | None = None,
    ) -> list[Generated]:
        """Write one answer per row of soft tokens [B, P, D]; dropout is the caller's to switch off.

        Args:
            present, asked: as in `loss`.
            rows: int64 [B], the studies' places in their split; asked for by sampling only.
        """
        prompt = Prompt(self.prompt(soft, asked), self.prompt_mask(soft, present, asked))
        return decode(CausalLmDecoder(self.llm), prompt, decoding, self.tokenizer, rows)

    def train(self, mode: bool = True) -> "ReportWriter":
        """As nn.Module.train, but a frozen model stays in eval mode (still checkpointing its activations if asked)."""
        super().train(mode)
        if self.config.tuning == "frozen":
            self.llm.eval()
            for layer in self.llm.modules():
                if isinstance(layer, GradientCheckpointingLayer):
                    layer.training = mode  # the flag it looks at; its children, hence dropout, stay in eval mode
        return self

    def padding(self) -> float | None:
        """Share of the places that were padding in the losses since it was last asked; None where there were none."""
        (tokens, padding), self.read = self.read, [0, 0]
        return padding / (tokens + padding) if tokens else None

    def gradient_checkpointing(self, on: bool = True) -> None:
        """Recompute activations in backward. Worth it when frozen too: gradients still pass through every layer."""
        if on:
            self.llm.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        else:
            self.llm.gradient_checkpointing_disable()

    def fingerprint(self) -> dict[str, str | dict[str, str] | None]:
        """Name the pretrained weights: {source, revision, sha256 of each weight file}. They are never checkpointed."""
        if self._sha256 is None:
            self._sha256 = weight_hashes(self.config.source, self.config.revision)
        return {"source": self.config.source, "revision": self.config.revision, "sha256": self._sha256}

    def _frame(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.before, self.after, self.closing

    def _logits(self, chosen: tuple[Tensor, ...], **inputs: Any) -> Tensor:
        """Logits [K, words] of the places that `chosen` names, (rows, columns); the LM head sees no others."""

        def keep(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return (args[0][chosen][None], *args[1:])

        hook = self.llm.get_output_embeddings().register_forward_pre_hook(keep)
        try:
            return self.llm(**inputs, use_cache=False).logits[0]
        finally:
            hook.remove()

    @torch.no_grad()
    def _keeps_apart(self, embeds: Tensor) -> bool:
        """Whether studies that share a row of this architecture do not see one another, nor one another's places.

        Collective under ZeRO-3: every worker asks at its first batch, whatever is in it.
        """
        exact = self.config.quantization == "none" and embeds.dtype == torch.float32
        self.llm.eval()
        own = torch.randn(1, 3, embeds.shape[2], generator=torch.Generator().manual_seed(0)).to(embeds)
        place = torch.arange(3, device=embeds.device)[None]
        last = (torch.zeros(1, dtype=torch.long), torch.tensor([-1]))
        alone = self._logits(last, inputs_embeds=own, position_ids=place)
        beside = [
            self._logits(last, inputs_embeds=torch.cat((other, own), 1), position_ids=torch.cat((place, place), 1))
            for other in (own.flip(1) * 2, -own)
        ]
        self.train(self.training)
        near = (alone - beside[0]).abs().max() <= (1e-3 if exact else 3e-2) * alone.abs().max()
        return torch.equal(*beside) and bool(near)  # what is not attended to changes no bit
